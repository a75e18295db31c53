-- Give keys to subjects that have none yet; of two processes at once, the first one's count.
--   $1 subjects text[]   $2 keys bytea[]
INSERT INTO subject_keys (subject, key) SELECT * FROM unnest($1::text[], $2::bytea[])
    ON CONFLICT ON CONSTRAINT subject_keys_pkey DO NOTHING
