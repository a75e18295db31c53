-- Take free buckets and those whose lease ran out, up to a worker's fair share. Taking raises the epoch.
--   $1 group_id text   $2 worker_id text   $3 lease in seconds float8
WITH alive AS (
    SELECT count(*) AS workers FROM group_workers
     WHERE group_id = $1 AND seen_at > clock_timestamp() - make_interval(secs => $3)
), buckets AS (
    SELECT count(*) AS count, count(*) FILTER (WHERE worker_id = $2) AS mine FROM group_buckets WHERE group_id = $1
), free AS (
    SELECT bucket FROM group_buckets
     WHERE group_id = $1 AND (worker_id IS NULL OR leased_until < clock_timestamp()) AND worker_id IS DISTINCT FROM $2
     ORDER BY bucket
     LIMIT greatest(0, (SELECT ceil(count / greatest(workers, 1)::numeric)::bigint - mine FROM alive, buckets))
       FOR UPDATE SKIP LOCKED
)
UPDATE group_buckets AS b
   SET worker_id = $2, epoch = b.epoch + 1, leased_until = clock_timestamp() + make_interval(secs => $3)
  FROM free WHERE b.group_id = $1 AND b.bucket = free.bucket
