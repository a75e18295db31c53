-- What a persistent subscription has parked, in order.
--   $1 source text   $2 group text   $3 limit bigint, NULL = all
SELECT place FROM kurrent_parked WHERE source = $1 AND group_name = $2 ORDER BY place LIMIT $3
