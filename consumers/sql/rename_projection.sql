-- Give all that is kept of a projection another name. Whoever runs it finds it gone.
--   $1 projection text   $2 new name text
WITH offsets AS (
    UPDATE projection_offsets SET projection = $2, updated_at = now() WHERE projection = $1
), parked AS (
    UPDATE projection_parked SET projection = $2 WHERE projection = $1
)
UPDATE projections SET projection = $2 WHERE projection = $1
