-- Note a relay that is new, with its number of shards.
--   $1 relay_id text   $2 shards int
INSERT INTO relays (relay_id, shards) VALUES ($1, $2) ON CONFLICT ON CONSTRAINT relays_pkey DO NOTHING
