-- The events behind a position that were published late.
--   $1 relay_id text   $2 position bigint   ->   global_position bigint
SELECT global_position FROM relay_late WHERE relay_id = $1 AND global_position > $2
