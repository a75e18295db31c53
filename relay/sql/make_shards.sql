-- Make the rows of a relay's shards that are not there yet.
--   $1 relay_id text
INSERT INTO relay_shards (relay_id, shard)
SELECT relay_id, generate_series(0, shards - 1) FROM relays WHERE relay_id = $1
    ON CONFLICT ON CONSTRAINT relay_shards_pkey DO NOTHING
