-- Give up the first parked event of a stream.
--   $1 relay_id text   $2 stream_id text   ->   global_position bigint
DELETE FROM relay_parked
 WHERE relay_id = $1
   AND global_position = (SELECT min(global_position) FROM relay_parked WHERE relay_id = $1 AND stream_id = $2)
RETURNING global_position
