-- Forget a worker that ends.
--   $1 relay_id text   $2 worker_id text
DELETE FROM relay_workers WHERE relay_id = $1 AND worker_id = $2
