-- How far each projection has come, in the same database and the same transactions as its rows.
CREATE TABLE IF NOT EXISTS projection_offsets (
    projection    text        NOT NULL,
    topic         text        NOT NULL,
    partition     integer     NOT NULL,
    epoch         bigint      NOT NULL,              -- rises with each owner: an older owner can't commit any more
    next_offset   bigint      NOT NULL DEFAULT 0,    -- the first record not yet consumed
    last_position bigint      NOT NULL DEFAULT 0,    -- the highest global position applied
    events        bigint      NOT NULL DEFAULT 0,    -- how many events were applied
    last_late     bigint      NOT NULL DEFAULT 0,    -- the number of the last record applied that came late
    updated_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT projection_offsets_pkey PRIMARY KEY (projection, topic, partition)
)
