-- Set the compatibility level of a subject ('' = in general); NULL takes it back.
--   $1 subject text   $2 compatibility text
INSERT INTO registry_settings (subject, compatibility) VALUES ($1, $2)
    ON CONFLICT ON CONSTRAINT registry_settings_pkey DO UPDATE SET compatibility = EXCLUDED.compatibility
