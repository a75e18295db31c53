-- How long until a reaction's next event is due.
--   $1 reaction text   ->   seconds; NULL if none waits
SELECT extract(epoch FROM due_at - clock_timestamp())::float8 FROM scheduled_events
 WHERE reaction = $1 AND failure IS NULL ORDER BY due_at LIMIT 1
