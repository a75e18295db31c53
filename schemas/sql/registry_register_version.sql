-- List a schema under a subject, at a version or as the next one. Run under lock_registration.
--   $1 subject text   $2 version int, NULL = the next   $3 schema_id int
--   ->   version int; no row if the version has another schema, or the schema another version that is not deleted
INSERT INTO subjects (subject, version, schema_id)
SELECT $1, coalesce($2, (SELECT max(version) FROM subjects WHERE subject = $1) + 1, 1), $3
 WHERE NOT EXISTS (SELECT FROM subjects WHERE subject = $1 AND schema_id = $3 AND NOT deleted AND version IS DISTINCT FROM $2)
    ON CONFLICT ON CONSTRAINT subjects_pkey DO UPDATE SET deleted = false WHERE subjects.schema_id = EXCLUDED.schema_id
RETURNING version
