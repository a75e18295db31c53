-- Which of some events a relay has parked, or published late.
--   $1 relay_id text   $2 positions bigint[]
--   ->   global_position bigint, number of the late record bigint (NULL = parked), reason text
SELECT global_position, NULL::bigint AS late, reason FROM relay_parked WHERE relay_id = $1 AND global_position = ANY ($2::bigint[])
 UNION ALL
SELECT global_position, late, '' FROM relay_late WHERE relay_id = $1 AND global_position = ANY ($2::bigint[])
