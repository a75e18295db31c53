-- Which door serves the consumers of a persistent subscription, and which parked events it shall give out again.
ALTER TABLE kurrent_groups
    ADD COLUMN door         uuid,
    ADD COLUMN address      text        NOT NULL DEFAULT '',
    ADD COLUMN claims       bigint      NOT NULL DEFAULT 0,
    ADD COLUMN leased_until timestamptz NOT NULL DEFAULT '-infinity';

ALTER TABLE kurrent_parked ADD COLUMN replay boolean NOT NULL DEFAULT false;
