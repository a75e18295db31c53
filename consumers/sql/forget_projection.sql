-- Forget all that is kept of a projection.
--   $1 projection text
WITH offsets AS (
    DELETE FROM projection_offsets WHERE projection = $1
), parked AS (
    DELETE FROM projection_parked WHERE projection = $1
)
DELETE FROM projections WHERE projection = $1
