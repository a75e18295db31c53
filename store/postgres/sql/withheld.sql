-- Which of some events a relay has parked.
--   $1 relay_id text   $2 positions bigint[]   ->   global_position bigint, reason text
SELECT global_position, reason FROM relay_parked WHERE relay_id = $1 AND global_position = ANY ($2::bigint[])
