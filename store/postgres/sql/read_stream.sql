-- A stream's events, in order.
--   $1 stream_id text   $2 first version bigint   $3 last version bigint   $4 limit bigint, NULL = all
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text, tags, payload, created_at
  FROM events
 WHERE stream_id = $1 AND version >= $2 AND version <= $3
 ORDER BY version
 LIMIT $4
