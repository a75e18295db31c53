-- Have the first parked events of a persistent subscription given out again, by whichever door serves it.
--   $1 source text   $2 group text   $3 limit bigint
UPDATE kurrent_parked p SET replay = true
  FROM (SELECT place FROM kurrent_parked WHERE source = $1 AND group_name = $2 ORDER BY place LIMIT $3) AS first
 WHERE p.source = $1 AND p.group_name = $2 AND p.place = first.place AND NOT p.replay
