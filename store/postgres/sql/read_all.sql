-- The log after a position, in order. Positions are dense, so the range is bounded on both sides and no plan can go wrong.
--   $1 after position bigint   $2 up to and including position bigint
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text, tags, payload, created_at
  FROM events
 WHERE global_position > $1 AND global_position <= $2
 ORDER BY global_position
