-- Let a projection stand still if another one does.
--   $1 projection text   $2 the other text
INSERT INTO projections (projection, paused) SELECT $1, paused FROM projections WHERE projection = $2
    ON CONFLICT ON CONSTRAINT projections_pkey DO UPDATE SET paused = EXCLUDED.paused
