-- The streams that are parked, and from which position on.
--   $1 relay_id text   ->   stream_id text, first bigint
SELECT stream_id, min(global_position) AS first FROM relay_parked WHERE relay_id = $1 GROUP BY stream_id
