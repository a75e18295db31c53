-- A relay's parked events.
--   $1 relay_id text
SELECT global_position, stream_id, shard, tries, retry, reason, parked_at FROM relay_parked WHERE relay_id = $1 ORDER BY global_position
