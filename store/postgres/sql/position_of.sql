-- Where an event stands; no row if it is not there.
--   $1 id uuid
SELECT global_position FROM events WHERE id = $1
