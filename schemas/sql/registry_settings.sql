-- What the registry was told of a subject and, under '', in general.
--   $1 subject text   ->   subject text, compatibility text, mode text
SELECT subject, compatibility, mode FROM registry_settings WHERE subject IN ($1, '')
