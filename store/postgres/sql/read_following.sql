-- What the relay publishes: the log after a position, as stored, and before it the event at that position, without its payload, so
-- that a server that holds another history is noticed at every read. Large payloads end a batch early; the sum looks at their lengths
-- only and does not fetch them.
--   $1 after position bigint   $2 up to and including position bigint   $3 bytes of payload at most, but one event at least
SELECT global_position, id, stream_id, stream_type, event_type, version, schema_version,
       CASE WHEN global_position > $1 THEN payload END AS payload, created_at, metadata
  FROM (SELECT global_position, id::text AS id, stream_id, stream_type, event_type, version, schema_version, payload, created_at,
               metadata::text AS metadata,
               sum(CASE WHEN global_position > $1 THEN octet_length(payload) ELSE 0 END) OVER (ORDER BY global_position) AS bytes
          FROM events
         WHERE global_position >= $1 AND global_position <= $2) AS following
 WHERE bytes <= $3 OR global_position <= $1 + 1
 ORDER BY global_position
