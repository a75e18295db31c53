-- The versions of a subject with their schemas, ascending; no row if there is no such subject.
--   $1 subject text   ->   version int, schema_id int, definition text
SELECT u.version, u.schema_id, s.definition FROM subjects u JOIN schemas s USING (schema_id) WHERE u.subject = $1 ORDER BY u.version
