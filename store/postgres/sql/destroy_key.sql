-- Forget a person's key for ever. Doing it again changes nothing.
--   $1 subject text
UPDATE subject_keys SET key = NULL, erased_at = now() WHERE subject = $1 AND key IS NOT NULL
