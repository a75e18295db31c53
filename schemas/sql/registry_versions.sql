-- The versions of a subject with their schemas, ascending, deleted ones too; no row if there is no such subject.
--   $1 subject text   ->   subject text, version int, schema_id int, definition text, refs text (JSON), deleted bool
SELECT u.subject, u.version, u.schema_id, s.definition, s.refs::text, u.deleted
  FROM subjects u JOIN schemas s USING (schema_id) WHERE u.subject = $1 ORDER BY u.version
