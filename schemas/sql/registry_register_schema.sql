-- Give a schema an id, or find the one it has. Run under lock_registration, so that two registrations can't pick one id.
--   $1 fingerprint bytea   $2 definition text   $3 refs text (JSON)   $4 wanted int, NULL = the next   ->   schema_id int
WITH known AS (
    SELECT schema_id FROM schemas WHERE fingerprint = $1
), added AS (
    INSERT INTO schemas (schema_id, fingerprint, definition, refs)
    SELECT coalesce($4, (SELECT max(schema_id) FROM schemas) + 1, 1), $1, $2, $3::text::jsonb
     WHERE NOT EXISTS (SELECT FROM known)
    RETURNING schema_id
)
SELECT schema_id FROM known UNION ALL SELECT schema_id FROM added
