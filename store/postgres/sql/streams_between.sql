-- The last event of each stream in some part of the log, which begins at another position for each category.
--   $1 categories text[]   $2 positions behind which each begins bigint[]   $3 last position bigint
--   ->   stream_id text, global_position bigint
SELECT e.stream_id, max(e.global_position) AS global_position
  FROM unnest($1::text[], $2::bigint[]) AS part (stream_type, behind)
 CROSS JOIN LATERAL (
       SELECT stream_id, global_position FROM events
        WHERE stream_type = part.stream_type AND global_position > part.behind AND global_position <= $3
       ) AS e
 GROUP BY e.stream_id
