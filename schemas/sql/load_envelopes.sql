-- The envelopes of schemas of data, as far as there are some.
--   $1 data_schema_ids int[]   ->   data_schema_id int, schema_id int, definition text (of the envelope)
SELECT e.data_schema_id, e.schema_id, s.definition
  FROM envelopes e JOIN schemas s USING (schema_id)
 WHERE e.data_schema_id = ANY ($1)
