-- Add an imported batch to the hash chain, if all before it is in it, and tell the listeners.
--   $1 last position of the batch bigint   $2 events in the batch bigint
SELECT CASE WHEN coalesce((SELECT max(l.last_position) FROM links l), 0) = $1::bigint - $2::bigint THEN link_events($1) END,
       pg_notify('eventspine_' || 'events'::regclass::oid, $1::bigint::text)
