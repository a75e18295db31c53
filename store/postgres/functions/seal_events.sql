-- Add at most `most` events, the first that are not in the hash chain, as one link. Takes the log's lock, as appends do.
-- Returns up to which position the log is in the chain now, and the last position of the log.
CREATE OR REPLACE FUNCTION seal_events(most int) RETURNS TABLE (sealed bigint, last bigint) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock((1702261358::bigint << 32) | 'events'::regclass::oid::bigint);
    last := coalesce((SELECT max(e.global_position) FROM events e), 0);
    sealed := coalesce((SELECT max(l.last_position) FROM links l), 0);
    IF sealed < last THEN
        sealed := least(sealed + most, last);
        PERFORM link_events(sealed);
    END IF;
    RETURN NEXT;
END $$;
