-- Say that a worker is alive, keep its leases, and tell how far its shards are. The two run side by side.
--   $1 relay_id text   $2 worker_id text   $3 lease in seconds float8
--   $4 shards int[]   $5 states text[]   $6 positions bigint[]   $7 published bigint[]   $8 rates float8[]
WITH seen AS (
    INSERT INTO relay_workers AS w (relay_id, worker_id, seen_at) VALUES ($1, $2, clock_timestamp())
        ON CONFLICT ON CONSTRAINT relay_workers_pkey DO UPDATE SET seen_at = EXCLUDED.seen_at
)
UPDATE relay_shards AS s
   SET leased_until = clock_timestamp() + make_interval(secs => $3), state = n.state, position = n.position,
       published = n.published, rate = n.rate, updated_at = clock_timestamp()
  FROM unnest($4::int[], $5::text[], $6::bigint[], $7::bigint[], $8::float8[]) AS n (shard, state, position, published, rate)
 WHERE s.relay_id = $1 AND s.worker_id = $2 AND s.shard = n.shard
