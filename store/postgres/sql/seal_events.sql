-- Call seal_events(); see there.
--   $1 most int   ->   sealed bigint, last bigint
SELECT sealed, last FROM seal_events($1)
