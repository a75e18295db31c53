-- Empty a table of the outbox, and tell whether it was done: only if all in it is published, nothing in it is parked, and the last
-- message of the outbox is elsewhere, since positions go on behind it.
--   trimmed int: 0, 1 or 2   published bigint: the least position of the relay's cursors   relay text: its relay_id
--
-- What lies before the cursors can't be asked for any more, and cursors only rise. So what is decided here stays true.
-- The senders' lock is taken before the table's: no sender then holds the table, and none queues for it behind us while a long
-- reader does. Both waits end soon (SQLSTATE 55P03), and the relay tries again later: senders wait for 0.2 s at most.
CREATE OR REPLACE FUNCTION trim_outbox(trimmed int, published bigint, relay text) RETURNS boolean
LANGUAGE plpgsql
SET lock_timeout = '100ms'
SET enable_seqscan = off
AS $$
DECLARE
    last_position bigint;
BEGIN
    PERFORM pg_advisory_xact_lock((1702261358::bigint << 32) | 'outbox'::regclass::oid::bigint);
    EXECUTE format('LOCK TABLE outbox_%s IN ACCESS EXCLUSIVE MODE', trimmed);
    SELECT max(o.position) INTO last_position FROM outbox o WHERE o.slot = trimmed;
    IF last_position IS NULL OR last_position >= published OR last_position = (SELECT max(o.position) FROM outbox o)
       OR EXISTS (SELECT FROM relay_parked p JOIN outbox o ON o.position = p.global_position
                   WHERE p.relay_id = relay AND o.slot = trimmed) THEN
        RETURN false;
    END IF;
    EXECUTE format('TRUNCATE outbox_%s', trimmed);
    RETURN true;
END $$;
