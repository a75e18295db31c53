-- Give up the first parked event of a stream.
--   $1 relay_id text   $2 stream_id text   ->   global_position bigint
WITH gone AS (
    DELETE FROM relay_parked
     WHERE relay_id = $1
       AND global_position = (SELECT min(global_position) FROM relay_parked WHERE relay_id = $1 AND stream_id = $2)
    RETURNING global_position
), counted AS (
    UPDATE relays SET discards = discards + 1 WHERE relay_id = $1 AND EXISTS (SELECT FROM gone)
)
SELECT global_position FROM gone
