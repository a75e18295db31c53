-- Change a persistent subscription's settings; no row comes back if there is none.
--   $1 source text   $2 group text   $3 settings json text
UPDATE kurrent_groups SET settings = $3::jsonb WHERE source = $1 AND group_name = $2 RETURNING place
