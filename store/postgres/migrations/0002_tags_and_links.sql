-- Tags, filtered reads, the hash chain, and the schema version of snapshots.
ALTER TABLE events ADD COLUMN tags text[];
ALTER TABLE snapshots ADD COLUMN schema_version integer NOT NULL DEFAULT 1;

CREATE INDEX events_category_idx ON events (stream_type, global_position);
CREATE INDEX events_type_idx ON events (event_type, global_position);
CREATE INDEX events_correlation_idx ON events ((metadata ->> 'correlation_id'), global_position)
    WHERE metadata ->> 'correlation_id' IS NOT NULL;

CREATE TABLE event_tags (
    tag             text   NOT NULL,
    global_position bigint NOT NULL,
    event_type      text   NOT NULL,
    CONSTRAINT event_tags_pkey PRIMARY KEY (tag, global_position) INCLUDE (event_type)
);

CREATE TABLE links (
    number        bigint NOT NULL,         -- 1, 2, …
    last_position bigint NOT NULL,         -- of the batch; it begins after the last position of the link before
    leaves        bytea  NOT NULL,         -- event_digest() of each event, 32 bytes each, in order
    digest        bytea  NOT NULL,         -- SHA-256 of number, last position, both earlier digests, and SHA-256 of the leaves
    CONSTRAINT links_pkey PRIMARY KEY (number),
    CONSTRAINT links_last_position_key UNIQUE (last_position)
);

CREATE TRIGGER event_tags_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON event_tags
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TRIGGER links_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON links
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

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

-- It takes other parameters now; the new one is made with the other functions.
DROP FUNCTION IF EXISTS append_events(text[], text[], int[], bigint[], int[], int[], uuid[], text[], int[], jsonb[], jsonb[], bytea[]);
