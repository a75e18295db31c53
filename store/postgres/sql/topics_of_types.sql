-- In which topics the relay has published each registered type: those under whose names it listed the type's schemas. Nothing where
-- subjects name no topic (RecordNameStrategy).
--   $1 topic_prefix text   ->   topic text (without the prefix), event_type text
SELECT DISTINCT substr(left(u.subject, -length(n.ending)), length($1) + 1) AS topic, t.event_type
  FROM subjects u
  JOIN schemas s ON s.schema_id = u.schema_id
  LEFT JOIN envelopes v ON v.schema_id = u.schema_id
  JOIN event_types t ON t.schema_id = coalesce(v.data_schema_id, u.schema_id)
 CROSS JOIN LATERAL (SELECT s.definition::jsonb ->> 'name' AS name, s.definition::jsonb ->> 'namespace' AS namespace) r
 CROSS JOIN LATERAL (
       VALUES ('-' || CASE WHEN r.namespace IS NULL OR r.name LIKE '%.%' THEN r.name ELSE r.namespace || '.' || r.name END),
              ('-value')) n (ending)
 WHERE NOT u.deleted AND starts_with(u.subject, $1) AND right(u.subject, length(n.ending)) = n.ending
   AND length(u.subject) > length($1) + length(n.ending)
 ORDER BY 1, 2
