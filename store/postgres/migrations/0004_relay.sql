-- What the relay keeps in Postgres beside its cursors on Kafka: shards and who publishes them, topics, parked events, the outbox.
CREATE TABLE relays (
    relay_id   text        NOT NULL,
    shards     integer     NOT NULL,
    generation integer     NOT NULL DEFAULT 0,
    paused     text,
    discards   bigint      NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT relays_pkey PRIMARY KEY (relay_id),
    CONSTRAINT relays_shards_check CHECK (shards >= 1)
);

CREATE TABLE relay_shards (
    relay_id     text        NOT NULL,
    shard        integer     NOT NULL,
    worker_id    text,
    leased_until timestamptz,
    state        text        NOT NULL DEFAULT 'waiting',
    position     bigint      NOT NULL DEFAULT 0,
    published    bigint      NOT NULL DEFAULT 0,
    rate         float8      NOT NULL DEFAULT 0,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT relay_shards_pkey PRIMARY KEY (relay_id, shard)
);

CREATE TABLE relay_workers (
    relay_id  text        NOT NULL,
    worker_id text        NOT NULL,
    seen_at   timestamptz NOT NULL,
    CONSTRAINT relay_workers_pkey PRIMARY KEY (relay_id, worker_id)
);

CREATE TABLE relay_topics (
    relay_id   text    NOT NULL,
    topic      text    NOT NULL,
    partitions integer NOT NULL,
    kafka_id   text    NOT NULL DEFAULT '',
    CONSTRAINT relay_topics_pkey PRIMARY KEY (relay_id, topic)
);

CREATE TABLE relay_parked (
    relay_id        text        NOT NULL,
    global_position bigint      NOT NULL,
    stream_id       text        NOT NULL,
    shard           integer     NOT NULL,
    reason          text        NOT NULL,
    tries           integer     NOT NULL,
    retry           boolean     NOT NULL DEFAULT false,
    parked_at       timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT relay_parked_pkey PRIMARY KEY (relay_id, global_position)
);

CREATE INDEX relay_parked_stream_idx ON relay_parked (relay_id, stream_id, global_position);

CREATE TABLE outbox (
    slot       smallint    NOT NULL,
    position   bigint      NOT NULL,
    message_id uuid        NOT NULL,
    topic      text        NOT NULL,
    key        text        NOT NULL,
    value      bytea       NOT NULL,
    headers    jsonb       NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT outbox_pkey PRIMARY KEY (position, slot)
) PARTITION BY LIST (slot);

CREATE TABLE outbox_0 PARTITION OF outbox FOR VALUES IN (0);
CREATE TABLE outbox_1 PARTITION OF outbox FOR VALUES IN (1);
CREATE TABLE outbox_2 PARTITION OF outbox FOR VALUES IN (2);

CREATE TABLE outbox_relay (
    one          boolean NOT NULL DEFAULT true,
    topic_prefix text    NOT NULL,
    name         text    NOT NULL,
    CONSTRAINT outbox_relay_pkey PRIMARY KEY (one),
    CONSTRAINT outbox_relay_one_check CHECK (one)
);
