-- Give a schema the id that it had in the log that is restored. Where that id or that schema is known, nothing changes.
--   $1 schema_id int   $2 fingerprint bytea   $3 definition text   $4 refs jsonb
INSERT INTO schemas (schema_id, fingerprint, definition, refs) VALUES ($1, $2, $3, $4::text::jsonb) ON CONFLICT DO NOTHING
