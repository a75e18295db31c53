-- One change of a subject at a time, so that a schema can be held against the earlier ones while other subjects and the event
-- types go on. Ends with the transaction; taken before lock_registration.
--   $1 subject text
SELECT pg_advisory_xact_lock(hashtextextended($1, 'subjects'::regclass::oid::bigint))
