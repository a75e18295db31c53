-- Begin the next generation of a relay with another number of shards.
--   $1 relay_id text   $2 shards int   $3 generation that ends int
WITH cut AS (
    UPDATE relays SET shards = $2, generation = generation + 1, paused = NULL
     WHERE relay_id = $1 AND generation = $3 AND paused = 'reshard'
 RETURNING relay_id
), gone AS (
    DELETE FROM relay_shards s USING cut WHERE s.relay_id = cut.relay_id AND s.shard >= $2
)
SELECT relay_id FROM cut
