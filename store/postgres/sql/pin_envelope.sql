-- Say again which schema the envelope around a schema of data had. Where that is known, nothing changes.
--   $1 schema_id int   $2 data_schema_id int
INSERT INTO envelopes (schema_id, data_schema_id) VALUES ($1, $2) ON CONFLICT DO NOTHING
