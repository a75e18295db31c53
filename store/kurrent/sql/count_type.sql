-- How many events a type has, up to a position.
--   $1 event type text   $2 up to and including position bigint
SELECT count(*) FROM events WHERE event_type = $1 AND global_position <= $2
