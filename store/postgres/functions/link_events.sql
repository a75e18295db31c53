-- Add a link to the hash chain: of all events that are not in it yet, up to `last_position`.
--
-- digest = SHA-256(number int64 ‖ last_position int64 ‖ digest of link number - 1 ‖ digest of link number - skip ‖ SHA-256(leaves)),
-- big-endian; 32 zero bytes stand for the digest of link 0. `skip` is the largest power of two that divides the number, so that from
-- any link one gets to any earlier one in few steps: 143 at most among 100,000 links, 284 among 10 million.
-- The caller holds the log's lock.
CREATE OR REPLACE FUNCTION link_events(last_position bigint) RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_variable
DECLARE
    previous links;
    next     bigint;
    skipped  bytea;
    leaves   bytea;
    zero     CONSTANT bytea := '\x0000000000000000000000000000000000000000000000000000000000000000';
BEGIN
    SELECT * INTO previous FROM links ORDER BY number DESC LIMIT 1;
    next := coalesce(previous.number, 0) + 1;
    skipped := coalesce((SELECT l.digest FROM links l WHERE l.number = next - (next & -next)), zero);
    SELECT string_agg(event_digest(e), ''::bytea ORDER BY e.global_position) INTO leaves
      FROM events e WHERE e.global_position > coalesce(previous.last_position, 0) AND e.global_position <= last_position;
    INSERT INTO links (number, last_position, leaves, digest)
    VALUES (next, last_position, leaves, sha256(
        int8send(next) || int8send(last_position) || coalesce(previous.digest, zero) || skipped || sha256(leaves)));
END $$;
