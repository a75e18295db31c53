-- Which event stands at a position; no row if none.
--   $1 global position bigint   ->   id text
SELECT id::text FROM events WHERE global_position = $1
