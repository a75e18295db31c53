-- What of some events is still parked.
--   $1 relay_id text   $2 positions bigint[]   ->   global_position bigint, stream_id text, retry boolean, reason text
SELECT global_position, stream_id, retry, reason FROM relay_parked
 WHERE relay_id = $1 AND global_position = ANY ($2::bigint[]) ORDER BY global_position
