-- Set the mode of a subject ('' = in general); NULL takes it back.
--   $1 subject text   $2 mode text
INSERT INTO registry_settings (subject, mode) VALUES ($1, $2)
    ON CONFLICT ON CONSTRAINT registry_settings_pkey DO UPDATE SET mode = EXCLUDED.mode
