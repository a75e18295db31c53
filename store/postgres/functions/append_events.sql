-- Append a batch of appends over many streams, written as a list of parts: an append has one part for each stream that it
-- writes to, and is recorded with all its parts or not at all. One row comes back, of arrays with an element for each part, in order.
--
-- Streams are listed once and referred to by their place in the list, so that the last versions are probed set-wise. Arrays that
-- would hold 1, 2, 3 … can be NULL, which is how most batches come: one event for each of as many streams.
--   stream_ids     text[]    the streams of the batch, each once
--   part_expected  bigint[]  per part: the expected version; -1 = any, -2 = the stream exists
--   part_append    int[]     per part: its append (1, 2, …, rising); the parts of one name different streams; NULL = 1, 2, 3 …
--   part_stream    int[]     per part: its stream (1-based place in stream_ids); NULL = 1, 2, 3 …
--   part_events    int[]     per part: how many events it holds (>= 1); they follow each other below; NULL = one each
--   item_append … item_correlations  the conditions, as find_events() takes them; owner = the append. NULL = none
--   kind_types, kind_versions  text[], int[]  the event types and schema versions of the batch
--   event_kind     int[]     per event: its kind (1-based place in these); NULL = all are of the first
--   ids … payloads           per event: the columns of the table events; tags as array literals, NULL = no event has any
--   link           boolean   add the batch to the hash chain, if all that was recorded before is in it
--
-- outcomes  'appended'  version, position: of the part's first event; created_at: of all
--           'duplicate' the same events are recorded at that place already: version, position, created_at of the first
--           'conflict'  the stream is at `version`
--           'unmet'     an event that matches the append's condition stands at `position`
--           'taken'     an id is recorded elsewhere or with another payload
--           'skipped'   another part of the append was refused
--           NULL = all parts are 'appended', one event each: then `positions` and `moments` hold those of the first alone
-- Of an append that is neither 'appended' nor 'duplicate' nothing was written. That is an outcome and not an exception, so it
-- costs the other appends of the batch nothing. Appends whose condition matches events of the same batch, or that repeat an
-- event id of it, must be sent in a later batch: conditions and ids are looked up in what was recorded before.
--
-- The lock is taken first and held until the transaction ends. So nobody else can append between our look at
-- max(global_position) and our commit: positions are dense, and become visible in their order. Under REPEATABLE READ
-- the look would use a snapshot from before the lock; such transactions are refused (SQLSTATE 25001). The wait for the lock ends
-- after `lock_timeout`, or 10 s where that is not set (SQLSTATE 55P03): its holder may have fallen silent in a transaction.
CREATE OR REPLACE FUNCTION append_events(
    stream_ids text[], part_expected bigint[], part_append int[], part_stream int[], part_events int[],
    item_append int[], item_after bigint[], item_tags text[], item_types text[], item_categories text[], item_correlations text[],
    kind_types text[], kind_versions int[], event_kind int[], ids uuid[],
    data jsonb[], metadata jsonb[], tags text[], payloads bytea[], link boolean
) RETURNS TABLE (outcomes text[], versions bigint[], positions bigint[], moments timestamptz[])
LANGUAGE plpgsql
-- Plans are made once, whatever the arrays' sizes: planning anew would cost a single append a quarter of its time. A plan
-- that was made while the log was small must not scan it later.
SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
#variable_conflict use_variable
DECLARE
    lock_key       CONSTANT bigint := (1702261358::bigint << 32) | 'events'::regclass::oid::bigint;
    parts          CONSTANT int := cardinality(part_expected);
    event_part     int[];         -- per event: its part
    moment         timestamptz;
    last_position  bigint;
    next_position  bigint;
    last_versions  bigint[];
    recorded       boolean;       -- some id of the batch is in the log already
    unmet          bigint[] := '{}';  -- per append: where the first event stands that its condition forbids
    offsets        bigint[];      -- per part: of its first event in the arrays; 0 = not appended
    part           int := 1;      -- the first part of the append at hand
    next_part      int;
    current        bigint;
    expected       bigint;
    first_event    int := 1;      -- of the part at hand
    event          int;           -- the first event of the append at hand
    stream         int;
    known          bigint := 0;   -- how many of this part's events are in the log
    same           bigint := 0;   -- how many of them lie in this stream, as they are here
    together       boolean;       -- whether they follow each other in this order
    known_version  bigint;        -- of the first of them, and so on
    known_place    bigint;
    known_moment   timestamptz;
    appended       int;           -- how many parts of this append can be appended
    repeated       int;           -- how many parts of this append were recorded as they are
    written        boolean := false;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'append_events() needs READ COMMITTED, not %', upper(current_setting('transaction_isolation'))
            USING ERRCODE = 'active_sql_transaction';
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

    -- Most batches are one event each to as many streams, and nothing is in the way: one statement then writes them all. Where anything
    -- is, it writes nothing, and each part is decided below.
    IF part_append IS NULL AND part_stream IS NULL AND part_events IS NULL AND tags IS NULL AND item_append IS NULL THEN
        WITH log AS MATERIALIZED (
            SELECT coalesce(last.global_position, 0) AS global_position, greatest(clock_timestamp(), last.created_at) AS moment
              FROM (SELECT) AS one
              LEFT JOIN LATERAL (SELECT e.global_position, e.created_at FROM events e ORDER BY e.global_position DESC LIMIT 1) last
                ON true
        ), part AS MATERIALIZED (
            SELECT o.*, coalesce(last.version, 0) AS version
              FROM unnest(stream_ids, part_expected, ids, data, metadata, payloads) WITH ORDINALITY
                   AS o (stream_id, expected, id, data, metadata, payload, n)
              LEFT JOIN LATERAL (SELECT e.version FROM events e WHERE e.stream_id = o.stream_id ORDER BY e.version DESC LIMIT 1) last
                ON true
        ), written AS (
            INSERT INTO events AS e (global_position, id, stream_id, stream_type, version, event_type, schema_version,
                                     event_data, metadata, payload, created_at)
            SELECT log.global_position + p.n, p.id, p.stream_id, split_part(p.stream_id, '-', 1), p.version + 1,
                   kind_types[coalesce(event_kind[p.n], 1)], kind_versions[coalesce(event_kind[p.n], 1)],
                   p.data, p.metadata, p.payload, log.moment
              FROM part AS p CROSS JOIN log
             WHERE NOT EXISTS (SELECT FROM part AS f WHERE NOT (f.expected IN (-1, f.version) OR (f.expected = -2 AND f.version > 0)))
               AND NOT EXISTS (SELECT FROM part AS f CROSS JOIN LATERAL (SELECT FROM events e WHERE e.id = f.id OFFSET 0) known)
            RETURNING e.version, e.global_position, e.created_at
        )
        SELECT array_agg(w.version ORDER BY w.global_position), ARRAY[min(w.global_position)], ARRAY[min(w.created_at)]
          INTO versions, positions, moments FROM written AS w;
        IF versions IS NOT NULL THEN
            last_position := positions[1] + parts - 1;
            IF link AND positions[1] - 1 = coalesce((SELECT l.last_position FROM links l ORDER BY l.number DESC LIMIT 1), 0) THEN
                PERFORM link_events(last_position);
            END IF;
            PERFORM pg_notify('eventspine_' || 'events'::regclass::oid, last_position::text);
            RETURN NEXT;
            RETURN;
        END IF;
    END IF;

    outcomes := array_fill(''::text, ARRAY[parts]);
    versions := array_fill(0::bigint, ARRAY[parts]);
    positions := versions;
    offsets := versions;
    moments := array_fill(NULL::timestamptz, ARRAY[parts]);
    part_append := coalesce(part_append, ARRAY(SELECT generate_series(1, parts)));
    part_stream := coalesce(part_stream, ARRAY(SELECT generate_series(1, parts)));
    IF part_events IS NULL THEN
        event_part := ARRAY(SELECT generate_series(1, parts));
        part_events := array_fill(1, ARRAY[parts]);
    ELSE
        event_part := ARRAY(SELECT p.n FROM unnest(part_events) WITH ORDINALITY AS p (events, n), generate_series(1, p.events) AS e (n)
                             ORDER BY p.n, e.n);
    END IF;
    event_kind := coalesce(event_kind, array_fill(1, ARRAY[cardinality(ids)]));

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
    IF item_append IS NOT NULL THEN
        SELECT array_agg(coalesce(found.place, 0) ORDER BY a.n) INTO unmet
          FROM generate_series(1, part_append[parts]) AS a (n)
          LEFT JOIN (SELECT f.owner, min(f.position) AS place
                       FROM find_events(item_append, item_after, item_tags, item_types, item_categories, item_correlations,
                                        last_position, 1) AS f GROUP BY f.owner) AS found ON found.owner = a.n;
    END IF;

    WHILE part <= parts LOOP
        next_part := part;
        event := first_event;
        appended := 0;
        repeated := 0;
        WHILE next_part <= parts AND part_append[next_part] = part_append[part] LOOP
            stream := part_stream[next_part];
            current := last_versions[stream];
            expected := part_expected[next_part];
            IF recorded THEN
                -- Equal data can have other bytes (Avro writes a map in the order of its dict), but not under another schema id.
                SELECT count(e.id), min(e.version), min(e.global_position), min(e.created_at),
                       count(*) FILTER (WHERE e.stream_id = stream_ids[stream] AND e.event_type = kind_types[o.kind]
                                          AND (e.payload = o.payload OR (substr(e.payload, 1, 5) = substr(o.payload, 1, 5)
                                                                         AND e.event_data = o.data))),
                       count(DISTINCT e.global_position - o.n) = 1 AND count(DISTINCT e.version - o.n) = 1
                  INTO known, known_version, known_place, known_moment, same, together
                  FROM unnest(ids[first_event : first_event + part_events[next_part] - 1],
                              payloads[first_event : first_event + part_events[next_part] - 1],
                              data[first_event : first_event + part_events[next_part] - 1],
                              event_kind[first_event : first_event + part_events[next_part] - 1])
                       WITH ORDINALITY AS o (id, payload, data, kind, n)
                  LEFT JOIN events e ON e.id = o.id;
            END IF;

            IF same = part_events[next_part] AND together AND (expected < 0 OR known_version = expected + 1) THEN
                outcomes[next_part] := 'duplicate';
                versions[next_part] := known_version;
                positions[next_part] := known_place;
                moments[next_part] := known_moment;
                repeated := repeated + 1;
            ELSIF NOT (expected = current OR expected = -1 OR (expected = -2 AND current > 0)) THEN
                outcomes[next_part] := 'conflict';
                versions[next_part] := current;
            ELSIF known > 0 THEN
                outcomes[next_part] := 'taken';
            ELSIF unmet[part_append[part]] > 0 THEN
                outcomes[next_part] := 'unmet';
                positions[next_part] := unmet[part_append[part]];
            ELSE
                outcomes[next_part] := 'appended';
                appended := appended + 1;
            END IF;
            first_event := first_event + part_events[next_part];
            next_part := next_part + 1;
        END LOOP;

        IF appended = next_part - part THEN
            written := true;
            FOR i IN part .. next_part - 1 LOOP
                stream := part_stream[i];
                versions[i] := last_versions[stream] + 1;
                positions[i] := next_position;
                moments[i] := moment;
                offsets[i] := event;
                event := event + part_events[i];
                next_position := next_position + part_events[i];
                last_versions[stream] := last_versions[stream] + part_events[i];
            END LOOP;
        ELSIF repeated < next_part - part THEN
            -- A retry finds all parts recorded or none: parts of which some are recorded belong to another append.
            FOR i IN part .. next_part - 1 LOOP
                IF outcomes[i] = 'duplicate' THEN
                    outcomes[i] := 'taken';
                ELSIF outcomes[i] = 'appended' THEN
                    outcomes[i] := 'skipped';
                END IF;
            END LOOP;
        END IF;
        part := next_part;
    END LOOP;

    IF written THEN
        INSERT INTO events (global_position, id, stream_id, stream_type, version, event_type, schema_version,
                            event_data, metadata, tags, payload, created_at)
        SELECT positions[o.part] + o.n - offsets[o.part], o.id, s.id, split_part(s.id, '-', 1),
               versions[o.part] + o.n - offsets[o.part], kind_types[o.kind], kind_versions[o.kind],
               o.data, o.metadata, o.tags::text[], o.payload, moment
          FROM unnest(event_part, event_kind, ids, data, metadata, tags, payloads) WITH ORDINALITY
               AS o (part, kind, id, data, metadata, tags, payload, n)
          JOIN unnest(stream_ids) WITH ORDINALITY AS s (id, n) ON s.n = part_stream[o.part]
         WHERE offsets[o.part] > 0;
        IF tags IS NOT NULL THEN
            INSERT INTO event_tags (tag, global_position, event_type)
            SELECT t.tag, positions[o.part] + o.n - offsets[o.part], kind_types[o.kind]
              FROM unnest(event_part, event_kind, tags) WITH ORDINALITY AS o (part, kind, tags, n)
             CROSS JOIN LATERAL unnest(o.tags::text[]) AS t (tag)
             WHERE offsets[o.part] > 0;
        END IF;
        IF link AND last_position = coalesce((SELECT l.last_position FROM links l ORDER BY l.number DESC LIMIT 1), 0) THEN
            PERFORM link_events(next_position - 1);
        END IF;
        PERFORM pg_notify('eventspine_' || 'events'::regclass::oid, (next_position - 1)::text);
    END IF;

    RETURN NEXT;
END $$;
