-- Make a group's buckets, unless it has them.
--   $1 group_id text   $2 category text   $3 buckets int   $4 last_position bigint, where it begins   ->   category text, buckets bigint
WITH made AS (
    INSERT INTO group_buckets (group_id, bucket, category, last_position)
    SELECT $1, n, $2, $4 FROM generate_series(0, $3::int - 1) AS n
     WHERE NOT EXISTS (SELECT FROM group_buckets WHERE group_id = $1)
        ON CONFLICT ON CONSTRAINT group_buckets_pkey DO NOTHING
    RETURNING category
)
SELECT category, count(*) AS buckets
  FROM (SELECT category FROM group_buckets WHERE group_id = $1 UNION ALL SELECT category FROM made) AS b
 GROUP BY category
