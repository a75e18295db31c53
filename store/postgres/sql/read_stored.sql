-- What the relay publishes: the log after a position as stored, metadata split as the headers want it.
--   $1 after position bigint   $2 up to and including position bigint
SELECT global_position, id::text AS id, stream_id, stream_type, event_type, version, schema_version, payload,
       created_at, metadata::text AS metadata
  FROM events
 WHERE global_position > $1 AND global_position <= $2
 ORDER BY global_position
