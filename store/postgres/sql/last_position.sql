-- The position of the last event, 0 for an empty log.
SELECT coalesce(max(global_position), 0) FROM events
