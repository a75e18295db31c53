-- Where in a stream events with these ids stand.
--   $1 stream_id text   $2 ids uuid[]
SELECT id, version, global_position FROM events WHERE id = ANY ($2) AND stream_id = $1
