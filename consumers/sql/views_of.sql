-- Views that read some relations: they go on reading those, whatever schema they are moved to, until they are made again.
--   $1 schemas text[]   $2 names text[]   ->   name text, materialized bool, statement text (makes the view again, by names)
SELECT DISTINCT v.oid::regclass::text AS name, v.relkind = 'm' AS materialized,
       format('CREATE OR REPLACE VIEW %s%s AS %s', v.oid::regclass,
              ' WITH (' || array_to_string(v.reloptions, ', ') || ')', pg_get_viewdef(v.oid)) AS statement
  FROM unnest($1::text[], $2::text[]) AS read (schema, name)
  JOIN pg_namespace n ON n.nspname = read.schema
  JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = read.name
  JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.classid = 'pg_rewrite'::regclass
  JOIN pg_rewrite r ON r.oid = d.objid
  JOIN pg_class v ON v.oid = r.ev_class AND v.oid <> c.oid
 WHERE NOT EXISTS (SELECT FROM unnest($1::text[], $2::text[]) AS moved (schema, name)
                     JOIN pg_namespace m ON m.nspname = moved.schema
                    WHERE v.relnamespace = m.oid AND v.relname = moved.name)
