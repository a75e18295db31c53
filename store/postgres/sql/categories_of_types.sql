-- In which categories the events of each registered type are, without reading the log: those under whose topics the relay has listed
-- its schemas, and those of its first and its last event (events_type_idx).
--   $1 topic_prefix text   ->   category text, event_type text
SELECT split_part(substr(u.subject, length($1) + 1), '-', 1) AS category, t.event_type
  FROM subjects u
  LEFT JOIN envelopes v ON v.schema_id = u.schema_id
  JOIN event_types t ON t.schema_id = coalesce(v.data_schema_id, u.schema_id)
 WHERE NOT u.deleted AND starts_with(u.subject, $1) AND substr(u.subject, length($1) + 1) ~ '^[A-Za-z_][A-Za-z0-9_.]*-'
UNION
SELECT e.stream_type, n.event_type
  FROM (SELECT DISTINCT event_type FROM event_types) n,
       LATERAL ((SELECT stream_type FROM events WHERE event_type = n.event_type ORDER BY global_position LIMIT 1)
                UNION ALL
                (SELECT stream_type FROM events WHERE event_type = n.event_type ORDER BY global_position DESC LIMIT 1)) e
 ORDER BY 1, 2
