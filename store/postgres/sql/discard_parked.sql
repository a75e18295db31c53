-- Give up a parked stream's first event; those behind it stay parked until they are tried again.
--   $1 group_id text   $2 stream_id text   ->   global_position bigint, if there was one
DELETE FROM parked_events
 WHERE group_id = $1 AND global_position = (
       SELECT min(p.global_position) FROM parked_events p WHERE p.group_id = $1 AND p.stream_id = $2)
RETURNING global_position
