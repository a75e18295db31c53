-- Take events that are due, the first first; those that another scheduler has taken are passed over.
--   $1 reaction text   $2 limit bigint   ->   id
SELECT id FROM scheduled_events
 WHERE reaction = $1 AND failure IS NULL AND due_at <= clock_timestamp()
 ORDER BY due_at, id LIMIT $2 FOR UPDATE SKIP LOCKED
