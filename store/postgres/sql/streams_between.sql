-- The last event of each stream in some part of the log, which begins at another position for each category. Events that a relay
-- has parked, or published late, are left out, unless it is the very last position.
--   $1 categories text[]   $2 positions behind which each begins bigint[]   $3 last position bigint   $4 relay_id text
--   ->   stream_id text, global_position bigint
SELECT e.stream_id, max(e.global_position) AS global_position
  FROM unnest($1::text[], $2::bigint[]) AS part (stream_type, behind)
 CROSS JOIN LATERAL (
       SELECT stream_id, global_position FROM events
        WHERE stream_type = part.stream_type AND global_position > part.behind AND global_position <= $3
       ) AS e
 WHERE e.global_position = $3
    OR e.global_position NOT IN (SELECT global_position FROM relay_parked WHERE relay_id = $4
                                 UNION ALL SELECT global_position FROM relay_late WHERE relay_id = $4)
 GROUP BY e.stream_id
