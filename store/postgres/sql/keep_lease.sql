-- Say that a worker is alive, and keep its buckets.
--   $1 group_id text   $2 worker_id text   $3 lease in seconds float8
WITH seen AS (
    INSERT INTO group_workers AS w (group_id, worker_id, seen_at) VALUES ($1, $2, clock_timestamp())
        ON CONFLICT ON CONSTRAINT group_workers_pkey DO UPDATE SET seen_at = EXCLUDED.seen_at
)
UPDATE group_buckets SET leased_until = clock_timestamp() + make_interval(secs => $3) WHERE group_id = $1 AND worker_id = $2
