-- The streams that are parked.
--   $1 relay_id text
SELECT DISTINCT stream_id FROM relay_parked WHERE relay_id = $1
