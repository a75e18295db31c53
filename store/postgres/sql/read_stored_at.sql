-- Events at given positions, as stored, in order.
--   $1 positions bigint[]
SELECT global_position, id::text, stream_id, stream_type, event_type, version, schema_version, payload, created_at, metadata::text
  FROM events WHERE global_position = ANY ($1::bigint[]) ORDER BY global_position
