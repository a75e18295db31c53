-- Delete a persistent subscription with what it has parked; no row comes back if there is none.
--   $1 source text   $2 group text
DELETE FROM kurrent_groups WHERE source = $1 AND group_name = $2 RETURNING place
