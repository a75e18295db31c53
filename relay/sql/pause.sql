-- Pause a relay, for a reason; NULL lets it go on.
--   $1 relay_id text   $2 reason text
UPDATE relays SET paused = $2 WHERE relay_id = $1 RETURNING relay_id
