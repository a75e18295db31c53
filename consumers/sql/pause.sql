-- Let a projection stand still, or go on.
--   $1 projection text   $2 paused boolean
INSERT INTO projections (projection, paused) VALUES ($1, $2)
    ON CONFLICT ON CONSTRAINT projections_pkey DO UPDATE SET paused = EXCLUDED.paused
