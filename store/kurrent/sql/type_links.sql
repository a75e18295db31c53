-- The events of a type after a position, in order: what `$et-` links to.
--   $1 event type text   $2 after position bigint   $3 up to and including position bigint   $4 limit bigint   $5 events to leave out bigint
SELECT global_position
  FROM events
 WHERE event_type = $1 AND global_position > $2 AND global_position <= $3
 ORDER BY event_type, global_position
OFFSET $5
 LIMIT $4
