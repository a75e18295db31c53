-- Forget parked events that were handled, or that somebody discards.
--   $1 group_id text   $2 positions bigint[]
DELETE FROM parked_events WHERE group_id = $1 AND global_position = ANY ($2)
