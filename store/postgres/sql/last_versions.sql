-- The last version of each stream that exists.
--   $1 stream_ids text[]   ->   stream_id text, version bigint
SELECT s.id AS stream_id, last.version
  FROM unnest($1::text[]) AS s (id)
 CROSS JOIN LATERAL (SELECT e.version FROM events e WHERE e.stream_id = s.id ORDER BY e.version DESC LIMIT 1) AS last
