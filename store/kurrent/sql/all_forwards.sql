-- The log after a position, in order. Large events end a batch early.
--   $1 after position bigint   $2 up to and including position bigint   $3 bytes at most, but one event at least
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata, tags, payload, created_at
  FROM (SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text AS metadata, tags, payload, created_at,
               sum(octet_length(payload) + pg_column_size(metadata)) OVER (ORDER BY global_position) AS bytes
          FROM events
         WHERE global_position > $1 AND global_position <= $2) AS following
 WHERE bytes <= $3 OR global_position = $1 + 1
 ORDER BY global_position
