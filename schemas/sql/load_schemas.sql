-- Every schema with its id, what people call it, and where it is listed.
--   ->   schema_id int, definition text, refs text (JSON),
--        event_types text (JSON): [[event type, schema version], …], listed text (JSON): [[subject, version, deleted], …]
SELECT s.schema_id, s.definition, s.refs::text,
       coalesce((SELECT json_agg(json_build_array(t.event_type, t.schema_version) ORDER BY t.event_type, t.schema_version)
                   FROM event_types t WHERE t.schema_id = s.schema_id), '[]')::text AS event_types,
       coalesce((SELECT json_agg(json_build_array(u.subject, u.version, u.deleted) ORDER BY u.subject COLLATE "C", u.version)
                   FROM subjects u WHERE u.schema_id = s.schema_id), '[]')::text AS listed
  FROM schemas s ORDER BY s.schema_id
