-- Take the session's advisory lock for a name in this log, if it is free. It ends with the connection.
--   $1 name text   ->   boolean
SELECT pg_try_advisory_lock(hashtextextended($1, 'events'::regclass::oid::bigint))
