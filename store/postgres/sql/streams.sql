-- The streams of a category that were written to last, the newest first. Walks the category's index from its end.
--   $1 category text   $2 limit bigint   ->   stream_id text, version bigint, event_type text, created_at timestamptz
WITH RECURSIVE walk AS (
    (SELECT e.global_position, e.stream_id, e.version, e.event_type, e.created_at, ARRAY[e.stream_id] AS seen
       FROM events e WHERE e.stream_type = $1 ORDER BY e.global_position DESC LIMIT 1)
    UNION ALL
    SELECT next.global_position, next.stream_id, next.version, next.event_type, next.created_at, walk.seen || next.stream_id
      FROM walk
     CROSS JOIN LATERAL (
           SELECT e.global_position, e.stream_id, e.version, e.event_type, e.created_at FROM events e
            WHERE e.stream_type = $1 AND e.global_position < walk.global_position AND e.stream_id <> ALL (walk.seen)
            ORDER BY e.global_position DESC LIMIT 1) AS next
     WHERE cardinality(walk.seen) < $2
)
SELECT stream_id, version, event_type, created_at FROM walk ORDER BY global_position DESC
