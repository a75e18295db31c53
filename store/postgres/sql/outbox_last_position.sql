-- The position of the last message, 0 if there was none.
SELECT coalesce(max(position), 0) FROM outbox
