-- What is set aside of a stream, in order.
--   $1 projection text   $2 topic text   $3 partition int   $4 stream_id text
--   ->   global_position, late, stream_id, event_type, state, reason, tries, headers, key, value
SELECT global_position, late, stream_id, event_type, state, reason, tries, headers, key, value
  FROM projection_parked
 WHERE projection = $1 AND topic = $2 AND partition = $3 AND stream_id = $4 AND state <> 'skipped'
 ORDER BY global_position
