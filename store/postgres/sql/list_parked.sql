-- A group's parked events.
--   $1 group_id text   ->   global_position bigint, stream_id text, tries int, retry boolean, reason text, parked_at timestamptz
SELECT global_position, stream_id, tries, retry, reason, parked_at FROM parked_events WHERE group_id = $1 ORDER BY global_position
