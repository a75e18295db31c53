-- One part of the log after a position: the streams whose hash falls to it, as stored.
--   $1 after position bigint   $2 up to and including position bigint   $3 part int, 0 …   $4 of how many parts int
--   $5 categories text[], null for all   $6 event types text[]   $7 bytes: ends behind the event with which payloads exceed them
SELECT global_position, id, stream_id, stream_type, event_type, version, schema_version, payload, created_at, metadata
  FROM (SELECT global_position, id::text AS id, stream_id, stream_type, event_type, version, schema_version, payload, created_at,
               metadata::text AS metadata, sum(octet_length(payload)) OVER (ORDER BY global_position) AS bytes
          FROM events
         WHERE global_position > $1 AND global_position <= $2
           AND ($4 = 1 OR (hashtextextended(stream_id, 0) & 2147483647) % $4 = $3)
           AND ($5::text[] IS NULL OR stream_type = ANY ($5)) AND event_type = ANY ($6)) AS part
 WHERE bytes - octet_length(payload) <= $7
 ORDER BY global_position
