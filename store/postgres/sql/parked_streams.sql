-- Which of some streams are parked.
--   $1 group_id text   $2 stream_ids text[]   ->   stream_id text
SELECT DISTINCT stream_id FROM parked_events WHERE group_id = $1 AND stream_id = ANY ($2)
