-- The parked events of streams that are to be tried again, in order.
--   $1 group_id text   $2 buckets int[]   ->   global_position bigint, stream_id text, tries int
SELECT p.global_position, p.stream_id, p.tries
  FROM parked_events p
 WHERE p.group_id = $1 AND p.bucket = ANY ($2)
   AND EXISTS (SELECT FROM parked_events r WHERE r.group_id = $1 AND r.stream_id = p.stream_id AND r.retry)
 ORDER BY p.global_position
