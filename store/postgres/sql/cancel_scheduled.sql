-- Forget scheduled events. Waits for a scheduler that is appending one of them; then it is too late for that one.
--   $1 reaction text   $2 keys text[]   ->   id of each
DELETE FROM scheduled_events
 WHERE id IN (SELECT id FROM scheduled_events WHERE reaction = $1 AND key = ANY ($2) AND key <> '' ORDER BY id FOR UPDATE)
RETURNING id
