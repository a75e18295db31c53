-- Forget what was set for a subject.
--   $1 subject text
DELETE FROM registry_settings WHERE subject = $1
