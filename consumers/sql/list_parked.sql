-- What is set aside.
--   $1 projection text   $2 stream_id text, "" for all   $3 limit bigint
--   ->   topic, partition, stream_id, global_position, event_type, state, reason, tries, asked, parked_at, headers, value
SELECT topic, partition, stream_id, global_position, event_type, state, reason, tries, asked, parked_at, headers, value
  FROM projection_parked
 WHERE projection = $1 AND $2 IN ('', stream_id)
 ORDER BY stream_id, global_position
 LIMIT $3
