-- Take the log's lock until the transaction ends, as append_events() does. Whatever depends on it is asked in later statements: this
-- one's snapshot is from before the lock.
SELECT pg_advisory_xact_lock((1702261358::bigint << 32) | 'events'::regclass::oid::bigint)
