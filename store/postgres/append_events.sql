-- Append a batch of appends over many streams; one row comes back for each append, in order.
--
-- Streams are listed once and referred to by their place in the list, so that the last versions are probed set-wise.
--   stream_ids, stream_types   text[]    the streams of the batch, each once
--   append_stream              int[]     per append: its stream (1-based place in stream_ids)
--   append_expected            bigint[]  per append: the expected version; -1 = any, -2 = the stream exists
--   append_events              int[]     per append: how many events it holds (>= 1); they follow each other below
--   event_append               int[]     per event: its append (1-based), rising
--   ids … payloads                       per event: the columns of the table events
--
-- outcome   'appended'  version, position: of the append's first event; created_at: of all
--           'duplicate' the same events are recorded at that place already: version, position, created_at of the first
--           'conflict'  the stream is at `version`; nothing of this append was written
--           'taken'     an id is recorded elsewhere or with another payload; nothing of this append was written
--
-- A conflict is an outcome and not an exception, so it costs the other appends of the batch nothing.
--
-- The lock is taken first and held until the transaction ends. So nobody else can append between our look at
-- max(global_position) and our commit: positions are dense, and become visible in their order. Under REPEATABLE READ
-- the look would use a snapshot from before the lock; such transactions are refused (SQLSTATE 25001).
CREATE OR REPLACE FUNCTION append_events(
    stream_ids text[], stream_types text[],
    append_stream int[], append_expected bigint[], append_events int[],
    event_append int[], ids uuid[], event_types text[], schema_versions int[],
    data jsonb[], metadata jsonb[], payloads bytea[]
) RETURNS TABLE (outcome text, version bigint, "position" bigint, created_at timestamptz)
LANGUAGE plpgsql
SET enable_seqscan = off  -- a plan that was cached while the log was small must not scan it later
AS $$
#variable_conflict use_variable
DECLARE
    moment         timestamptz;
    last_position  bigint;
    next_position  bigint;
    last_versions  bigint[];
    recorded       boolean;       -- some id of the batch is in the log already
    outcomes       text[]   := array_fill(NULL::text, ARRAY[cardinality(append_stream)]);
    first_versions bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(append_stream)]);
    first_places   bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(append_stream)]);
    moments        timestamptz[] := array_fill(NULL::timestamptz, ARRAY[cardinality(append_stream)]);
    offsets        bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(append_stream)]);
    current        bigint;
    expected       bigint;
    first_event    int := 1;
    stream         int;
    earlier        record;
    repeated       boolean;       -- this append was recorded as it is
    taken          boolean;       -- some id of this append is in the log
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'append_events() needs READ COMMITTED, not %', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'active_sql_transaction';
    END IF;
    PERFORM pg_advisory_xact_lock((1702261358::bigint << 32) | 'events'::regclass::oid::bigint);

    SELECT e.global_position, greatest(clock_timestamp(), e.created_at) INTO last_position, moment
      FROM events e ORDER BY e.global_position DESC LIMIT 1;
    last_position := coalesce(last_position, 0);
    moment := coalesce(moment, clock_timestamp());
    next_position := last_position + 1;
    SELECT array_agg(coalesce(last.version, 0) ORDER BY s.n) INTO last_versions
      FROM unnest(stream_ids) WITH ORDINALITY AS s (id, n)
      LEFT JOIN LATERAL (SELECT e.version FROM events e WHERE e.stream_id = s.id ORDER BY e.version DESC LIMIT 1) last ON true;
    SELECT EXISTS (SELECT FROM unnest(ids) AS o (id)
                     CROSS JOIN LATERAL (SELECT FROM events e WHERE e.id = o.id OFFSET 0) known) INTO recorded;

    FOR i IN 1 .. cardinality(append_stream) LOOP
        stream := append_stream[i];
        current := last_versions[stream];
        expected := append_expected[i];
        repeated := false;
        taken := false;
        IF recorded THEN
            -- Where are this append's events, if anywhere? `same`: those that lie in this stream in this order, gapless.
            -- Equal data can have other bytes (Avro writes a map in the order of its dict), but not under another schema id.
            SELECT count(e.id) AS found, min(e.version) AS version, min(e.global_position) AS place, min(e.created_at) AS created_at,
                   count(*) FILTER (WHERE e.stream_id = stream_ids[stream] AND e.event_type = o.event_type
                                      AND (e.payload = o.payload OR (substr(e.payload, 1, 5) = substr(o.payload, 1, 5)
                                                                     AND e.event_data = o.data))) AS same,
                   count(DISTINCT e.global_position - o.n) = 1 AND count(DISTINCT e.version - o.n) = 1 AS together
              INTO earlier
              FROM unnest(ids[first_event : first_event + append_events[i] - 1],
                          payloads[first_event : first_event + append_events[i] - 1],
                          data[first_event : first_event + append_events[i] - 1],
                          event_types[first_event : first_event + append_events[i] - 1])
                   WITH ORDINALITY AS o (id, payload, data, event_type, n)
              LEFT JOIN events e ON e.id = o.id;
            taken := earlier.found > 0;
            repeated := earlier.same = append_events[i] AND earlier.together
                        AND (expected < 0 OR earlier.version = expected + 1);
        END IF;

        IF repeated THEN
            outcomes[i] := 'duplicate';
            first_versions[i] := earlier.version;
            first_places[i] := earlier.place;
            moments[i] := earlier.created_at;
        ELSIF NOT (expected = current OR expected = -1 OR (expected = -2 AND current > 0)) THEN
            outcomes[i] := 'conflict';
            first_versions[i] := current;
        ELSIF taken THEN
            outcomes[i] := 'taken';
        ELSE
            outcomes[i] := 'appended';
            first_versions[i] := current + 1;
            first_places[i] := next_position;
            moments[i] := moment;
            offsets[i] := first_event;
            next_position := next_position + append_events[i];
            last_versions[stream] := current + append_events[i];
        END IF;
        first_event := first_event + append_events[i];
    END LOOP;

    IF next_position > last_position + 1 THEN
        INSERT INTO events (global_position, id, stream_id, stream_type, version, event_type, schema_version,
                            event_data, metadata, payload, created_at)
        SELECT first_places[o.append] + o.n - offsets[o.append], o.id, s.id, s.type, first_versions[o.append] + o.n - offsets[o.append],
               o.event_type, o.schema_version, o.data, o.metadata, o.payload, moment
          FROM unnest(event_append, ids, event_types, schema_versions, data, metadata, payloads) WITH ORDINALITY
               AS o (append, id, event_type, schema_version, data, metadata, payload, n)
          JOIN unnest(stream_ids, stream_types) WITH ORDINALITY AS s (id, type, n) ON s.n = append_stream[o.append]
         WHERE offsets[o.append] IS NOT NULL;
        PERFORM pg_notify('eventspine_' || 'events'::regclass::oid, (next_position - 1)::text);
    END IF;

    RETURN QUERY SELECT * FROM unnest(outcomes, first_versions, first_places, moments);
END $$;
