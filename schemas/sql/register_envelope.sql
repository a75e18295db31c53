-- Say which schema the envelope around a schema of data has. Run under lock_registration.
--   $1 schema_id int   $2 data_schema_id int
INSERT INTO envelopes (schema_id, data_schema_id) VALUES ($1, $2)
