-- Parked events of a persistent subscription that are to be given out again, but for those that are on their way.
--   $1 source text   $2 group text   $3 places bigint[]   $4 limit bigint
SELECT place FROM kurrent_parked WHERE source = $1 AND group_name = $2 AND replay AND place <> ALL ($3) ORDER BY place LIMIT $4
