-- A schema and where it is listed; no row if there is no such id.
--   $1 schema_id int   ->   definition text, refs text (JSON), fingerprint bytea, max_id int,
--                           listed text (JSON): [{"subject": …, "version": …, "deleted": …}, …]
SELECT s.definition, s.refs::text, s.fingerprint, (SELECT max(schema_id) FROM schemas) AS max_id,
       coalesce((SELECT json_agg(json_build_object('subject', u.subject, 'version', u.version, 'deleted', u.deleted)
                                 ORDER BY u.subject COLLATE "C", u.version)
                   FROM subjects u WHERE u.schema_id = s.schema_id), '[]')::text AS listed
  FROM schemas s WHERE s.schema_id = $1
