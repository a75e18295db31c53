-- Columns that can hold a text, of all tables that are not ours.
--   ->   table text, column text, both quoted; holds text: the condition that the row `t` holds the text `v` there
SELECT format('%I.%I', n.nspname, c.relname) AS table, quote_ident(a.attname) AS column,
       CASE t.typname WHEN 'bytea' THEN format('position(convert_to(v, ''UTF8'') IN t.%I) > 0', a.attname)
                      ELSE format('strpos(t.%I::text, v) > 0', a.attname) END AS holds
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_type t ON t.oid = a.atttypid
 WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_toast%'
   AND (t.typcategory IN ('S', 'A', 'C') OR t.typname IN ('json', 'jsonb', 'xml', 'bytea', 'hstore', 'tsvector'))
   AND NOT (n.nspname = current_schema() AND c.relname IN (
            'events', 'event_tags', 'links', 'schemas', 'event_types', 'subjects', 'snapshots', 'subject_keys', 'subscription_checkpoints',
            'group_buckets', 'group_workers', 'parked_events', 'eventspine_migrations', 'projection_offsets'))
 ORDER BY 1, a.attnum
