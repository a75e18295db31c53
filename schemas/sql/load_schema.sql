-- A schema, and those that it refers to, directly or through others; no row if there is no such id.
--   $1 schema_id int   ->   schema_id int, definition text; the schema itself comes first
WITH RECURSIVE needed (schema_id, depth) AS (
    SELECT $1::integer, 0
    UNION
    SELECT u.schema_id, least(n.depth + 1, 1)
      FROM needed n JOIN schemas s USING (schema_id)
      CROSS JOIN LATERAL jsonb_to_recordset(s.refs) AS r (subject text, version integer)
      JOIN subjects u ON u.subject = r.subject AND u.version = r.version
)
SELECT s.schema_id, s.definition
  FROM (SELECT schema_id, min(depth) AS depth FROM needed GROUP BY schema_id) n JOIN schemas s USING (schema_id)
 ORDER BY n.depth, s.schema_id
