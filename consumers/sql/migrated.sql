-- Say which migrations a projection's tables have.
--   $1 projection text   $2 migrations text[]
INSERT INTO projections (projection, migrations) VALUES ($1, $2)
    ON CONFLICT ON CONSTRAINT projections_pkey DO UPDATE SET migrations = EXCLUDED.migrations
