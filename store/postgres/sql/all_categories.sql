-- The categories of the log, one look into the index for each.
--   ->   stream_type text
WITH RECURSIVE found AS (
    SELECT min(stream_type) AS stream_type FROM events
     UNION ALL
    SELECT (SELECT min(e.stream_type) FROM events e WHERE e.stream_type > found.stream_type) FROM found WHERE found.stream_type IS NOT NULL
)
SELECT stream_type FROM found WHERE stream_type IS NOT NULL
