-- The events of a category after a position, in order: what `$ce-` links to.
--   $1 stream type text   $2 with what the streams' ids begin text   $3 after position bigint   $4 up to and including position bigint
--   $5 limit bigint   $6 number of events to leave out bigint
SELECT global_position
  FROM events
 WHERE stream_type = $1 AND global_position > $3 AND global_position <= $4 AND stream_id ^@ $2 AND event_type <> '$streamDeleted'
 ORDER BY stream_type, global_position
OFFSET $6
 LIMIT $5
