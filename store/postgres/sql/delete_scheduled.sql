-- Forget scheduled events that are appended.
--   $1 ids uuid[]
DELETE FROM scheduled_events WHERE id = ANY ($1)
