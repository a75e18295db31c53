-- Create a persistent subscription; no row comes back if there is one.
--   $1 source text   $2 group text   $3 settings json text   $4 place bigint
INSERT INTO kurrent_groups (source, group_name, settings, place) VALUES ($1, $2, $3::jsonb, $4)
ON CONFLICT ON CONSTRAINT kurrent_groups_pkey DO NOTHING
RETURNING place
