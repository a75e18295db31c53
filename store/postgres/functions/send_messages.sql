-- Record messages in the outbox, in order, and return the position of the first.
--   message_ids uuid[]   topics, keys text[]   contents bytea[]   message_headers jsonb[]: an element for each message
--   slot_messages bigint: how many messages a table of the outbox takes before the next empty one is begun
--
-- The lock is taken first and held until the transaction ends, as append_events() does with the log's: so positions are dense, and
-- become visible in their order. The wait for it ends after `lock_timeout`, or 10 s where that is not set (SQLSTATE 55P03), and a
-- transaction that falls silent behind it is ended after 10 s, unless its owner has set a bound. Other isolation levels than READ
-- COMMITTED are refused (SQLSTATE 25001): they would look for the last position in a snapshot from before the lock.
--
-- Which table messages go to is decided by what is in the tables: a program that was told another `slot_messages` begins a table
-- sooner or later, and nothing else. While no table is empty (the relay is behind, or messages in it are parked) the one at hand grows.
CREATE OR REPLACE FUNCTION send_messages(
    message_ids uuid[], topics text[], keys text[], contents bytea[], message_headers jsonb[], slot_messages bigint
) RETURNS bigint
LANGUAGE plpgsql
-- Plans that were made while the tables were small must not scan them later.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
DECLARE
    lock_key      CONSTANT bigint := (1702261358::bigint << 32) | 'outbox'::regclass::oid::bigint;
    last_position bigint;
    present       smallint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'send_messages() needs READ COMMITTED, not %', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'active_sql_transaction';
    END IF;
    IF current_setting('idle_in_transaction_session_timeout') = '0' THEN
        PERFORM set_config('idle_in_transaction_session_timeout', '10s', true);
    END IF;
    IF NOT pg_try_advisory_xact_lock(lock_key) THEN
        IF current_setting('lock_timeout') = '0' THEN
            PERFORM set_config('lock_timeout', '10s', true);
            PERFORM pg_advisory_xact_lock(lock_key);
            PERFORM set_config('lock_timeout', '0', true);
        ELSE
            PERFORM pg_advisory_xact_lock(lock_key);
        END IF;
    END IF;

    SELECT o.position, o.slot INTO last_position, present FROM outbox o ORDER BY o.position DESC LIMIT 1;
    last_position := coalesce(last_position, 0);
    present := coalesce(present, 0);
    IF last_position - (SELECT min(o.position) FROM outbox o WHERE o.slot = present) + 1 >= slot_messages THEN
        present := CASE
            WHEN NOT EXISTS (SELECT FROM outbox o WHERE o.slot = 0) THEN 0
            WHEN NOT EXISTS (SELECT FROM outbox o WHERE o.slot = 1) THEN 1
            WHEN NOT EXISTS (SELECT FROM outbox o WHERE o.slot = 2) THEN 2
            ELSE present
        END;
    END IF;

    INSERT INTO outbox (slot, position, message_id, topic, key, value, headers)
    SELECT present, last_position + m.n, m.message_id, m.topic, m.key, m.value, m.headers
      FROM unnest(message_ids, topics, keys, contents, message_headers) WITH ORDINALITY
           AS m (message_id, topic, key, value, headers, n);
    PERFORM pg_notify('eventspine_' || 'outbox'::regclass::oid, (last_position + cardinality(message_ids))::text);
    RETURN last_position + 1;
END $$;
