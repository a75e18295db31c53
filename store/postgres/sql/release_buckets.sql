-- Give back what a worker has beyond its fair share of the buckets, or all of them.
--   $1 group_id text   $2 worker_id text   $3 lease in seconds float8   $4 all boolean
WITH alive AS (
    SELECT count(*) AS workers FROM group_workers
     WHERE group_id = $1 AND seen_at > clock_timestamp() - make_interval(secs => $3)
), buckets AS (
    SELECT count(*) AS count FROM group_buckets WHERE group_id = $1
), gone AS (
    DELETE FROM group_workers WHERE group_id = $1 AND worker_id = $2 AND $4
)
UPDATE group_buckets SET worker_id = NULL, leased_until = NULL
 WHERE group_id = $1 AND bucket IN (
       SELECT bucket FROM group_buckets WHERE group_id = $1 AND worker_id = $2 ORDER BY bucket
       OFFSET CASE WHEN $4 THEN 0 ELSE (SELECT ceil(count / greatest(workers, 1)::numeric)::bigint FROM alive, buckets) END)
