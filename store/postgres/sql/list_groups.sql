-- Every group: its category, how far its slowest bucket has come, workers, parked events.
--   ->   group_id, category, buckets bigint, free bigint, position bigint, lag bigint, workers bigint, parked bigint
SELECT b.group_id, min(b.category) AS category, count(*) AS buckets,
       count(*) FILTER (WHERE b.worker_id IS NULL OR b.leased_until < now()) AS free, min(b.last_position) AS position,
       (SELECT coalesce(max(e.global_position), 0) FROM events e) - min(b.last_position) AS lag,
       count(DISTINCT b.worker_id) FILTER (WHERE b.leased_until >= now()) AS workers,
       (SELECT count(*) FROM parked_events p WHERE p.group_id = b.group_id) AS parked
  FROM group_buckets b GROUP BY b.group_id ORDER BY b.group_id
