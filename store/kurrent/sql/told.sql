-- What was said of streams after a position: metadata and tombstones, in order.
--   $1 after position bigint   $2 up to and including position bigint   $3 event types text[]   $4 limit bigint
SELECT global_position, stream_id, event_type, payload
  FROM events
 WHERE event_type = ANY ($3) AND global_position > $1 AND global_position <= $2
 ORDER BY global_position
 LIMIT $4
