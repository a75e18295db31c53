-- What a reaction has scheduled, in the order of time.
--   $1 reaction text   $2 limit bigint   ->   id, key, due_at, stream_id, event_type, failure
SELECT id, key, due_at, stream_id, event_type, failure FROM scheduled_events WHERE reaction = $1 ORDER BY due_at, id LIMIT $2
