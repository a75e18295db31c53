-- The schema in which a table is found by its name alone, and that in which it would be made.
--   $1 table text   ->   found text, null if there is none; made_in text
SELECT (SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relname = $1 AND n.nspname = ANY (current_schemas(false))
         ORDER BY array_position(current_schemas(false), n.nspname) LIMIT 1) AS found,
       current_schema() AS made_in
