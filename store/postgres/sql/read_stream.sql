-- A stream's events, in order.
--   $1 stream_id text   $2 first version bigint   $3 limit bigint, NULL = all
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text, payload, created_at
  FROM events
 WHERE stream_id = $1 AND version >= $2
 ORDER BY version
 LIMIT $3
