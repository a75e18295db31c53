-- What projections keep beside their own tables, in the same database. Runs at each start, under a lock.
CREATE TABLE IF NOT EXISTS projection_offsets (      -- how far each projection has come: written with its rows, in one transaction
    projection    text        NOT NULL,
    topic         text        NOT NULL,
    partition     integer     NOT NULL,
    epoch         bigint      NOT NULL,              -- rises with each owner: an older owner can't commit any more
    next_offset   bigint      NOT NULL DEFAULT 0,    -- the first record not yet consumed
    last_position bigint      NOT NULL DEFAULT 0,    -- the highest global position taken
    events        bigint      NOT NULL DEFAULT 0,    -- how many events were taken: applied, passed over, or set aside
    last_late     bigint      NOT NULL DEFAULT 0,    -- the number of the last record taken that came late
    built_to      bigint      NOT NULL DEFAULT 0,    -- the position up to which it was built from the log
    topic_id      text,                              -- Kafka's id of the topic: another one means other records
    updated_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT projection_offsets_pkey PRIMARY KEY (projection, topic, partition)
);

DO $$
BEGIN
    -- Asked first: an ALTER waits for every transaction that writes offsets, even where it has nothing to do.
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'projection_offsets'::regclass AND attname = 'topic_id' AND NOT attisdropped) THEN
        ALTER TABLE projection_offsets
            ADD COLUMN IF NOT EXISTS last_late bigint NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS built_to bigint NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS topic_id text;
    END IF;
END
$$;

CREATE TABLE IF NOT EXISTS projection_parked (       -- events that were set aside, with the records that they came in
    projection      text        NOT NULL,
    topic           text        NOT NULL,
    partition       integer     NOT NULL,
    global_position bigint      NOT NULL,
    late            bigint      NOT NULL,            -- the record's number among the late ones, 0 = it came in order
    stream_id       text        NOT NULL,
    event_type      text        NOT NULL,
    state           text        NOT NULL,            -- parked, waiting (behind a parked one), skipped
    reason          text        NOT NULL,
    tries           integer     NOT NULL,
    headers         bytea       NOT NULL,            -- JSON, values in base64
    key             bytea       NOT NULL,
    value           bytea       NOT NULL,
    asked           text,                            -- retry, discard (this event, and retry the rest), discard-all
    parked_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT projection_parked_pkey PRIMARY KEY (projection, topic, partition, stream_id, global_position),
    CONSTRAINT projection_parked_state CHECK (state IN ('parked', 'waiting', 'skipped')),
    CONSTRAINT projection_parked_asked CHECK (asked IN ('retry', 'discard', 'discard-all'))
);

CREATE INDEX IF NOT EXISTS projection_parked_asked ON projection_parked (projection) WHERE asked IS NOT NULL;

CREATE TABLE IF NOT EXISTS projections (             -- what is asked of a projection, and what was done to its tables
    projection text    NOT NULL,
    paused     boolean NOT NULL DEFAULT false,
    migrations text[]  NOT NULL DEFAULT '{}',        -- those that its tables have, in order
    CONSTRAINT projections_pkey PRIMARY KEY (projection)
);

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'projections'::regclass AND attname = 'migrations' AND NOT attisdropped) THEN
        ALTER TABLE projections ADD COLUMN IF NOT EXISTS migrations text[] NOT NULL DEFAULT '{}';
    END IF;
END
$$;
