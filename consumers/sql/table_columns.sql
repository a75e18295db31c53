-- The columns of a table as it is.
--   $1 table name text   ->   column text, type text
SELECT attname AS column, format_type(atttypid, atttypmod) AS type
  FROM pg_attribute
 WHERE attrelid = to_regclass(quote_ident($1)) AND attnum > 0 AND NOT attisdropped
