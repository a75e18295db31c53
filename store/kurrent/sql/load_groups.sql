-- Persistent subscriptions, with the number of events that they have parked.
--   $1 source text, NULL = all   $2 group text, NULL = all
SELECT g.source, g.group_name, g.settings::text AS settings, g.place,
       (SELECT count(*) FROM kurrent_parked p WHERE p.source = g.source AND p.group_name = g.group_name) AS parked
  FROM kurrent_groups g
 WHERE ($1::text IS NULL OR g.source = $1) AND ($2::text IS NULL OR g.group_name = $2)
 ORDER BY g.source, g.group_name
