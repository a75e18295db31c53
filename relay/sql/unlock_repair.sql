-- End what lock_repair began.
--   $1 relay_id text
SELECT pg_advisory_unlock(hashtextextended('eventspine relay repair ' || $1, 0))
