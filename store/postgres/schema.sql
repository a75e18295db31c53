-- The tables of an event store, as a new database gets them. Old databases get here by the files in migrations/.
-- Names are not qualified: everything lives in the first schema of the connection's search_path.

-- The log. Only append_events() writes here, and only by INSERT.
CREATE TABLE events (
    global_position bigint      NOT NULL,  -- 1, 2, … in the log, dense: max(global_position) = count(*)
    id              uuid        NOT NULL,
    stream_id       text        NOT NULL,  -- {Type}-{id}
    stream_type     text        NOT NULL,  -- the {Type}
    version         bigint      NOT NULL,  -- 1, 2, … in the stream, dense
    event_type      text        NOT NULL,
    schema_version  integer     NOT NULL,
    event_data      jsonb       NOT NULL,  -- for people and queries
    metadata        jsonb       NOT NULL,  -- correlation_id, causation_id, user_id, timestamp, and the user's own
    payload         bytea       NOT NULL,  -- the truth: Avro in the Confluent wire format, as Kafka gets it
    created_at      timestamptz NOT NULL,  -- never falls along the log
    tags            text[],                -- sorted, each once; NULL = none
    CONSTRAINT events_pkey PRIMARY KEY (global_position),
    CONSTRAINT events_id_key UNIQUE (id),
    CONSTRAINT events_stream_version_key UNIQUE (stream_id, version),
    CONSTRAINT events_places_check CHECK (global_position >= 1 AND version >= 1)
);

-- One index for each way to filter the log; each ends in the position, so that a filtered read goes on where it stopped.
CREATE INDEX events_category_idx ON events (stream_type, global_position);
CREATE INDEX events_type_idx ON events (event_type, global_position);
CREATE INDEX events_correlation_idx ON events ((metadata ->> 'correlation_id'), global_position)
    WHERE metadata ->> 'correlation_id' IS NOT NULL;

-- The tags of events, by tag: events that have none cost nothing here. The type saves the look into `events`.
CREATE TABLE event_tags (
    tag             text   NOT NULL,
    global_position bigint NOT NULL,
    event_type      text   NOT NULL,
    CONSTRAINT event_tags_pkey PRIMARY KEY (tag, global_position) INCLUDE (event_type)
);

-- The hash chain: one link for each batch of events, which commits to its events, to the link before, and to one further
-- back, so that a proof for one event takes few links. See link_events().
CREATE TABLE links (
    number        bigint NOT NULL,         -- 1, 2, …
    last_position bigint NOT NULL,         -- of the batch; it begins after the last position of the link before
    leaves        bytea  NOT NULL,         -- event_digest() of each event, 32 bytes each, in order
    digest        bytea  NOT NULL,         -- SHA-256 of number, last position, both earlier digests, and SHA-256 of the leaves
    CONSTRAINT links_pkey PRIMARY KEY (number),
    CONSTRAINT links_last_position_key UNIQUE (last_position)
);

-- Avro schemas. An id is given once and means the same bytes for ever.
CREATE TABLE schemas (
    schema_id   integer NOT NULL,
    fingerprint bytea   NOT NULL,          -- SHA-256 of the definition (and of the references, where there are any)
    definition  text    NOT NULL,          -- Avro schema as JSON, keys sorted
    refs        jsonb   NOT NULL DEFAULT '[]',  -- [{"name": …, "subject": …, "version": …}]: where the types are that it names
    CONSTRAINT schemas_pkey PRIMARY KEY (schema_id),
    CONSTRAINT schemas_fingerprint_key UNIQUE (fingerprint)
);

-- Which schema an event type had in which of its versions.
CREATE TABLE event_types (
    event_type     text    NOT NULL,
    schema_version integer NOT NULL,
    schema_id      integer NOT NULL,
    CONSTRAINT event_types_pkey PRIMARY KEY (event_type, schema_version),
    CONSTRAINT event_types_schema_fkey FOREIGN KEY (schema_id) REFERENCES schemas (schema_id),
    CONSTRAINT event_types_version_check CHECK (schema_version >= 1)
);

-- What a schema registry calls a subject: {topic}-{record name} (TopicRecordNameStrategy), or another name.
CREATE TABLE subjects (
    subject   text    NOT NULL,
    version   integer NOT NULL,            -- 1, 2, … in the subject
    schema_id integer NOT NULL,
    deleted   boolean NOT NULL DEFAULT false,  -- softly: shown only to those who ask for deleted ones
    CONSTRAINT subjects_pkey PRIMARY KEY (subject, version),
    CONSTRAINT subjects_schema_fkey FOREIGN KEY (schema_id) REFERENCES schemas (schema_id)
);

CREATE UNIQUE INDEX subjects_schema_key ON subjects (subject, schema_id) WHERE NOT deleted;

-- What the registry was told of a subject; '' is what holds where a subject says nothing.
CREATE TABLE registry_settings (
    subject       text NOT NULL,
    compatibility text,                    -- BACKWARD, FULL_TRANSITIVE, …; NULL = not said here
    mode          text,                    -- READWRITE, READONLY, IMPORT; NULL = not said here
    CONSTRAINT registry_settings_pkey PRIMARY KEY (subject)
);

-- Schemas of records whose value holds the envelope too, and the schema of the data in it.
CREATE TABLE envelopes (
    schema_id      integer NOT NULL,
    data_schema_id integer NOT NULL,
    CONSTRAINT envelopes_pkey PRIMARY KEY (schema_id),
    CONSTRAINT envelopes_data_key UNIQUE (data_schema_id),
    CONSTRAINT envelopes_schema_fkey FOREIGN KEY (schema_id) REFERENCES schemas (schema_id),
    CONSTRAINT envelopes_data_fkey FOREIGN KEY (data_schema_id) REFERENCES schemas (schema_id)
);

-- A cache of a stream's state at a version: never needed to be right, always allowed to be missing.
CREATE TABLE snapshots (
    stream_id     text        NOT NULL,
    stream_type   text        NOT NULL,
    snapshot_data jsonb       NOT NULL,
    version       bigint      NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    schema_version integer    NOT NULL DEFAULT 1,  -- of the state's shape; one of another shape is ignored
    CONSTRAINT snapshots_pkey PRIMARY KEY (stream_id)
);

-- How far each subscription has come in the log.
CREATE TABLE subscription_checkpoints (
    subscription_id text        NOT NULL,
    last_position   bigint      NOT NULL,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT subscription_checkpoints_pkey PRIMARY KEY (subscription_id)
);

-- Groups of workers that share the events of a category. A group has a fixed number of buckets; a stream belongs to one of them by
-- its hash, a bucket to one worker at a time.
CREATE TABLE group_buckets (
    group_id      text        NOT NULL,
    bucket        integer     NOT NULL,            -- 0, 1, … one less than the number of buckets
    category      text        NOT NULL,
    last_position bigint      NOT NULL DEFAULT 0,  -- every event of the bucket up to here is handled or parked
    epoch         bigint      NOT NULL DEFAULT 0,  -- rises with each owner: an older owner can't move the position any more
    worker_id     text,                            -- NULL = free
    leased_until  timestamptz,
    CONSTRAINT group_buckets_pkey PRIMARY KEY (group_id, bucket)
);

CREATE TABLE group_workers (
    group_id  text        NOT NULL,
    worker_id text        NOT NULL,
    seen_at   timestamptz NOT NULL,
    CONSTRAINT group_workers_pkey PRIMARY KEY (group_id, worker_id)
);

-- Events that a group could not handle, and those behind them in their streams.
CREATE TABLE parked_events (
    group_id        text        NOT NULL,
    global_position bigint      NOT NULL,
    stream_id       text        NOT NULL,
    bucket          integer     NOT NULL,
    reason          text        NOT NULL,
    tries           integer     NOT NULL,          -- 0 = waits behind another one
    retry           boolean     NOT NULL DEFAULT false,  -- somebody asked to try again
    parked_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT parked_events_pkey PRIMARY KEY (group_id, global_position)
);

CREATE INDEX parked_events_stream_idx ON parked_events (group_id, stream_id, global_position);

-- Keys of the people whose data is in events: destroying one erases that person's data everywhere. Back this table up apart from the
-- others, for a shorter time.
CREATE TABLE subject_keys (
    subject    text        NOT NULL,
    key        bytea,                              -- AES-256; NULL = erased, for ever
    created_at timestamptz NOT NULL DEFAULT now(),
    erased_at  timestamptz,
    CONSTRAINT subject_keys_pkey PRIMARY KEY (subject),
    CONSTRAINT subject_keys_erased_check CHECK ((key IS NULL) = (erased_at IS NOT NULL))
);

-- What relays need beside their cursors, which are on Kafka. A relay is called by its topic prefix and its name: `events.relay`.
CREATE TABLE relays (
    relay_id   text        NOT NULL,
    shards     integer     NOT NULL,
    generation integer     NOT NULL DEFAULT 0,      -- rises with each change of the number of shards
    paused     text,                                -- why it is paused; NULL = it publishes
    discards   bigint      NOT NULL DEFAULT 0,      -- how many parked events were given up: the shards look again when it rises
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT relays_pkey PRIMARY KEY (relay_id),
    CONSTRAINT relays_shards_check CHECK (shards >= 1)
);

-- Who publishes a shard, and how far it is. For people and for liveness: that a shard has one publisher is Kafka's work.
CREATE TABLE relay_shards (
    relay_id     text        NOT NULL,
    shard        integer     NOT NULL,              -- 0, 1, … one less than the number of shards
    worker_id    text,                              -- NULL = free
    leased_until timestamptz,
    state        text        NOT NULL DEFAULT 'waiting',
    position     bigint      NOT NULL DEFAULT 0,    -- as its owner told it; the truth is the cursor on Kafka
    published    bigint      NOT NULL DEFAULT 0,    -- records, since the owner took the shard
    rate         float8      NOT NULL DEFAULT 0,    -- records a second
    updated_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT relay_shards_pkey PRIMARY KEY (relay_id, shard)
);

CREATE TABLE relay_workers (
    relay_id  text        NOT NULL,
    worker_id text        NOT NULL,
    seen_at   timestamptz NOT NULL,
    CONSTRAINT relay_workers_pkey PRIMARY KEY (relay_id, worker_id)
);

-- The topics that a relay writes to, as it found or made them: a changed number of partitions would change where streams go.
CREATE TABLE relay_topics (
    relay_id   text    NOT NULL,
    topic      text    NOT NULL,
    partitions integer NOT NULL,
    kafka_id   text    NOT NULL DEFAULT '',         -- Kafka's id of the topic; '' = not known
    CONSTRAINT relay_topics_pkey PRIMARY KEY (relay_id, topic)
);

-- Events that could not be published, and those behind them in their streams.
CREATE TABLE relay_parked (
    relay_id        text        NOT NULL,
    global_position bigint      NOT NULL,
    stream_id       text        NOT NULL,
    shard           integer     NOT NULL,
    reason          text        NOT NULL,
    tries           integer     NOT NULL,           -- 0 = waits behind another one
    retry           boolean     NOT NULL DEFAULT false,  -- somebody asked to try again
    parked_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT relay_parked_pkey PRIMARY KEY (relay_id, global_position)
);

CREATE INDEX relay_parked_stream_idx ON relay_parked (relay_id, stream_id, global_position);

-- Events that were parked and then published late: by the number a reader of its own writes knows whether a read model has them.
CREATE TABLE relay_late (
    relay_id        text   NOT NULL,
    global_position bigint NOT NULL,
    late            bigint NOT NULL,                -- the number by which the record says so (header ce_latenumber)
    CONSTRAINT relay_late_pkey PRIMARY KEY (relay_id, global_position)
);

-- Messages that are no events, recorded in the transaction of the caller's rows. Three tables: a full one gives way to an empty one,
-- and is emptied by TRUNCATE when all in it is published, never row by row. Each holds consecutive positions.
CREATE TABLE outbox (
    slot       smallint    NOT NULL,                -- which table; send_messages() chooses it
    position   bigint      NOT NULL,                -- 1, 2, … in the outbox
    message_id uuid        NOT NULL,
    topic      text        NOT NULL,
    key        text        NOT NULL,                -- messages of one key stay in order
    value      bytea       NOT NULL,
    headers    jsonb       NOT NULL,                -- {"name": "text", …}
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT outbox_pkey PRIMARY KEY (position, slot)
) PARTITION BY LIST (slot);

CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES IN (0);
CREATE TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1);
CREATE TABLE outbox_2 PARTITION OF outbox FOR VALUES IN (2);

-- The one relay that publishes the outbox: who comes with another prefix or name runs it under this one, so that no message is
-- published twice.
CREATE TABLE outbox_relay (
    one          boolean NOT NULL DEFAULT true,
    topic_prefix text    NOT NULL,
    name         text    NOT NULL,
    CONSTRAINT outbox_relay_pkey PRIMARY KEY (one),
    CONSTRAINT outbox_relay_one_check CHECK (one)
);

-- Events that reactions have scheduled, until they are appended or cancelled.
CREATE TABLE scheduled_events (
    id             uuid        NOT NULL,            -- of the event, also in the log later
    reaction       text        NOT NULL,
    key            text        NOT NULL,            -- by which the reaction can cancel it; '' = it can't
    due_at         timestamptz NOT NULL,
    stream_id      text        NOT NULL,
    event_type     text        NOT NULL,
    schema_version integer     NOT NULL,
    payload        bytea       NOT NULL,
    metadata       jsonb       NOT NULL,
    tags           text[],
    failure        text,                            -- why it could not be appended: it waits until this is NULL again
    scheduled_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT scheduled_events_pkey PRIMARY KEY (id)
);

CREATE INDEX scheduled_events_due_idx ON scheduled_events (reaction, due_at) WHERE failure IS NULL;
CREATE INDEX scheduled_events_key_idx ON scheduled_events (reaction, key) WHERE key <> '';

-- To which events a reaction has scheduled or cancelled something: the mark of both. It takes effect once, however often the event
-- is delivered. (Where a reaction only appends, the event that it appends is the mark.)
CREATE TABLE reaction_marks (
    mark      uuid        NOT NULL,                 -- also the id of the reaction's first event, if it appends any
    reaction  text        NOT NULL,
    marked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT reaction_marks_pkey PRIMARY KEY (mark)
);

-- Persistent subscriptions of the EventStoreDB door.
CREATE TABLE kurrent_groups (
    source     text   NOT NULL,                 -- a stream's name as clients know it, or $all
    group_name text   NOT NULL,
    settings   jsonb  NOT NULL,
    place      bigint NOT NULL,                 -- all up to here is dealt with: a version of the stream, or a position of the log
    CONSTRAINT kurrent_groups_pkey PRIMARY KEY (source, group_name)
);

CREATE TABLE kurrent_parked (
    source     text        NOT NULL,
    group_name text        NOT NULL,
    place      bigint      NOT NULL,
    reason     text        NOT NULL,
    parked_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT kurrent_parked_pkey PRIMARY KEY (source, group_name, place),
    CONSTRAINT kurrent_parked_group_fkey FOREIGN KEY (source, group_name) REFERENCES kurrent_groups (source, group_name) ON DELETE CASCADE
);

-- The second wall behind the missing grants: nobody changes history, not even the owner of the table.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never updated or deleted; append a new event that corrects the old one'
        USING ERRCODE = 'restrict_violation';
END $$;

CREATE TRIGGER events_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER event_tags_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event_tags
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER links_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON links
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER schemas_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON schemas
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER event_types_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event_types
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
