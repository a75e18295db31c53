-- Events that were parked and then published late, with the number by which their records say so: by it a reader of its own writes
-- knows whether a read model has them.
CREATE TABLE relay_late (
    relay_id        text   NOT NULL,
    global_position bigint NOT NULL,
    late            bigint NOT NULL,
    CONSTRAINT relay_late_pkey PRIMARY KEY (relay_id, global_position)
);
