-- Park events whose records are missing, to be tried again at once: the relay publishes them late.
--   $1 relay_id text   $2 positions bigint[]   $3 reason text
INSERT INTO relay_parked (relay_id, global_position, stream_id, shard, reason, tries, retry)
SELECT $1, e.global_position, e.stream_id, 0, $3, 0, true FROM events e WHERE e.global_position = ANY ($2::bigint[])
    ON CONFLICT ON CONSTRAINT relay_parked_pkey DO NOTHING
