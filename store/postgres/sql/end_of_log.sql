-- The end of the log, for who holds its lock.
--   ->   last position bigint, the time for what comes next timestamptz
SELECT coalesce(last.global_position, 0), greatest(clock_timestamp(), last.created_at)
  FROM (SELECT) AS one
  LEFT JOIN LATERAL (SELECT e.global_position, e.created_at FROM events e ORDER BY e.global_position DESC LIMIT 1) AS last ON true
