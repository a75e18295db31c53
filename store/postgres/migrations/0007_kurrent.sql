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
