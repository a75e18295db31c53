-- Give shards back.
--   $1 relay_id text   $2 worker_id text   $3 shards int[]
UPDATE relay_shards SET worker_id = NULL, leased_until = NULL, state = 'waiting', rate = 0, updated_at = clock_timestamp()
 WHERE relay_id = $1 AND worker_id = $2 AND shard = ANY ($3::int[])
