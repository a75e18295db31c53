-- The tables of the outbox that hold messages, with their first and last position.
--   ->   slot int, first bigint, last bigint
SELECT 0 AS slot, min(position) AS first, max(position) AS last FROM outbox_0 HAVING max(position) IS NOT NULL
 UNION ALL
SELECT 1, min(position), max(position) FROM outbox_1 HAVING max(position) IS NOT NULL
 UNION ALL
SELECT 2, min(position), max(position) FROM outbox_2 HAVING max(position) IS NOT NULL
