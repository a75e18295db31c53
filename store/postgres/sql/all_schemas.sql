-- Every schema, and of which schema of data it is the envelope; NULL = of none.
--   ->   schema_id int, fingerprint bytea, definition text, refs text (JSON), data_schema_id int
SELECT s.schema_id, s.fingerprint, s.definition, s.refs::text, e.data_schema_id
  FROM schemas s LEFT JOIN envelopes e USING (schema_id) ORDER BY s.schema_id
