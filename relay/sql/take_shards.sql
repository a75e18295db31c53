-- Take free shards and those whose lease ran out, up to a worker's fair share.
--   $1 relay_id text   $2 worker_id text   $3 lease in seconds float8
WITH alive AS (
    SELECT count(*) AS workers FROM relay_workers
     WHERE relay_id = $1 AND seen_at > clock_timestamp() - make_interval(secs => $3)
), shards AS (
    SELECT r.shards AS count, count(*) FILTER (WHERE s.worker_id = $2) AS mine
      FROM relays r JOIN relay_shards s ON s.relay_id = r.relay_id AND s.shard < r.shards
     WHERE r.relay_id = $1 AND coalesce(r.paused, '') NOT IN ('reshard', 'rebuild') GROUP BY r.shards
), free AS (
    SELECT shard FROM relay_shards
     WHERE relay_id = $1 AND (worker_id IS NULL OR leased_until < clock_timestamp()) AND shard < (SELECT count FROM shards)
     ORDER BY shard
     LIMIT greatest(0, (SELECT ceil(count / greatest(workers, 1)::numeric)::bigint - mine FROM alive, shards))
       FOR UPDATE SKIP LOCKED
)
UPDATE relay_shards AS s
   SET worker_id = $2, leased_until = clock_timestamp() + make_interval(secs => $3), state = 'starting', published = 0, rate = 0,
       updated_at = clock_timestamp()
  FROM free WHERE s.relay_id = $1 AND s.shard = free.shard
