-- The parked events of streams that are to be tried again, in order: somebody asked for it, or what the first of them waited
-- behind was given up.
--   $1 relay_id text   ->   global_position bigint, stream_id text
WITH firsts AS (
    SELECT DISTINCT ON (stream_id) stream_id, tries FROM relay_parked WHERE relay_id = $1 ORDER BY stream_id, global_position
)
SELECT p.global_position, p.stream_id
  FROM relay_parked p
 WHERE p.relay_id = $1
   AND (p.stream_id IN (SELECT r.stream_id FROM relay_parked r WHERE r.relay_id = $1 AND r.retry)
        OR p.stream_id IN (SELECT f.stream_id FROM firsts f WHERE f.tries = 0))
 ORDER BY p.global_position
