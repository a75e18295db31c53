-- Every registered version of every event type.
--   schema_id int, event_type text, schema_version int, definition text (Avro as JSON)
SELECT s.schema_id, t.event_type, t.schema_version, s.definition
  FROM event_types t JOIN schemas s USING (schema_id)
 ORDER BY s.schema_id, t.event_type, t.schema_version
