-- Events with all that the hash chain covers, and what people query.
--   $1 after position bigint   $2 up to and including position bigint
SELECT global_position, id, stream_id, stream_type, version, event_type, schema_version, metadata::text, tags, payload, created_at,
       event_data::text
  FROM events
 WHERE global_position > $1 AND global_position <= $2
 ORDER BY global_position
