-- The events at positions.
--   $1 positions bigint[]
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text, tags, payload, created_at
  FROM events
 WHERE global_position = ANY ($1)
 ORDER BY global_position
