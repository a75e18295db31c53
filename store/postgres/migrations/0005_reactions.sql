-- Scheduled events, and the marks of reactions.
CREATE TABLE scheduled_events (
    id             uuid        NOT NULL,
    reaction       text        NOT NULL,
    key            text        NOT NULL,
    due_at         timestamptz NOT NULL,
    stream_id      text        NOT NULL,
    event_type     text        NOT NULL,
    schema_version integer     NOT NULL,
    payload        bytea       NOT NULL,
    metadata       jsonb       NOT NULL,
    tags           text[],
    failure        text,
    scheduled_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT scheduled_events_pkey PRIMARY KEY (id)
);

CREATE INDEX scheduled_events_due_idx ON scheduled_events (reaction, due_at) WHERE failure IS NULL;
CREATE INDEX scheduled_events_key_idx ON scheduled_events (reaction, key) WHERE key <> '';

CREATE TABLE reaction_marks (
    mark      uuid        NOT NULL,
    reaction  text        NOT NULL,
    marked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT reaction_marks_pkey PRIMARY KEY (mark)
);
