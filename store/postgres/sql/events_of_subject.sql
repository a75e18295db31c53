-- The events of a type that hold data of a person.
--   $1 event_type text   $2 schema_version int   $3 name of the subject's field text   $4 subject text
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text, tags, payload, created_at
  FROM events
 WHERE event_type = $1 AND schema_version = $2 AND event_data ->> $3 = $4
 ORDER BY global_position
