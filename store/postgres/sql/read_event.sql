-- One event by its id.
--   $1 id uuid
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text, tags, payload, created_at
  FROM events WHERE id = $1
