-- The parked events of streams that are to be tried again, in order.
--   $1 relay_id text   ->   global_position bigint, stream_id text
SELECT p.global_position, p.stream_id
  FROM relay_parked p
 WHERE p.relay_id = $1 AND p.stream_id IN (SELECT r.stream_id FROM relay_parked r WHERE r.relay_id = $1 AND r.retry)
 ORDER BY p.global_position
