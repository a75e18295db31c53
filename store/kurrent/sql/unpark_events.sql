-- Forget parked events that were dealt with after all.
--   $1 source text   $2 group text   $3 places bigint[]
DELETE FROM kurrent_parked WHERE source = $1 AND group_name = $2 AND place = ANY ($3)
