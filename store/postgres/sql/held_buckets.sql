-- A worker's buckets.
--   $1 group_id text   $2 worker_id text   ->   bucket int, epoch bigint, last_position bigint
SELECT bucket, epoch, last_position FROM group_buckets WHERE group_id = $1 AND worker_id = $2 ORDER BY bucket
