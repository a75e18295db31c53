-- Note why an event could not be appended when it was due.
--   $1 id uuid   $2 failure text
UPDATE scheduled_events SET failure = $2 WHERE id = $1
