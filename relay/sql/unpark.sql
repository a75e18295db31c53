-- Forget parked events that were published.
--   $1 relay_id text   $2 positions bigint[]
DELETE FROM relay_parked WHERE relay_id = $1 AND global_position = ANY ($2::bigint[])
