-- Schemas by their ids.
--   $1 schema_ids int[]   ->   schema_id int, definition text
SELECT schema_id, definition FROM schemas WHERE schema_id = ANY ($1) ORDER BY schema_id
