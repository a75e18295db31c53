-- One registration at a time; readers are not held up. Ends with the transaction. An advisory lock: to lock the table takes the right
-- to change its rows, which an application role does not have. What
-- depends on it is asked in later statements, of a transaction that is READ COMMITTED.
SELECT pg_advisory_xact_lock((1702261358::bigint << 32) | 'schemas'::regclass::oid::bigint)
