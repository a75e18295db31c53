-- How many events a category has, up to a position.
--   $1 stream type text   $2 with what the streams' ids begin text   $3 up to and including position bigint
SELECT count(*) FROM events WHERE stream_type = $1 AND global_position <= $3 AND stream_id ^@ $2 AND event_type <> '$streamDeleted'
