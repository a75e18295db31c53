-- What the relay publishes: the outbox after a position. The first row is about that position itself: the id of the message there,
-- NULL if there is none, and as `headers` the last position of the outbox. Large values end a batch early; the sum looks at their
-- lengths only.
--   $1 after position bigint   $2 up to and including position bigint   $3 bytes of values at most, but one message at least
SELECT $1 AS position, (SELECT message_id::text FROM outbox WHERE position = $1) AS id, '' AS stream_id, '' AS topic, '' AS key,
       ''::bytea AS value, (SELECT coalesce(max(position), 0) FROM outbox)::text AS headers
 UNION ALL
SELECT position, id, stream_id, topic, key, value, headers
  FROM (SELECT position, message_id::text AS id, topic || '/' || key AS stream_id, topic, key, value, headers::text AS headers,
               sum(octet_length(value)) OVER (ORDER BY position) AS bytes
          FROM outbox
         WHERE position > $1 AND position <= $2) AS following
 WHERE bytes <= $3 OR position = $1 + 1
 ORDER BY position
