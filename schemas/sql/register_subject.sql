-- List a schema under a subject, as its next version. A second time changes nothing. Run under lock_registration.
--   $1 subject text   $2 schema_id int
INSERT INTO subjects (subject, version, schema_id)
SELECT $1, coalesce((SELECT max(version) FROM subjects WHERE subject = $1), 0) + 1, $2
    ON CONFLICT (subject, schema_id) WHERE NOT deleted DO NOTHING
