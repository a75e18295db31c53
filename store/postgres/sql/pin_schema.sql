-- Give a schema the id that it had in the log that is restored. Where that id or that schema is known, nothing changes.
--   $1 schema_id int   $2 fingerprint bytea   $3 definition text
INSERT INTO schemas (schema_id, fingerprint, definition) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
