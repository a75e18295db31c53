-- Set events of a persistent subscription aside. Nothing happens if the subscription was deleted.
--   $1 source text   $2 group text   $3 places bigint[]   $4 reasons text[]
INSERT INTO kurrent_parked (source, group_name, place, reason)
SELECT g.source, g.group_name, o.place, o.reason
  FROM kurrent_groups g, unnest($3::bigint[], $4::text[]) AS o (place, reason)
 WHERE g.source = $1 AND g.group_name = $2
ON CONFLICT ON CONSTRAINT kurrent_parked_pkey DO UPDATE SET reason = excluded.reason, parked_at = clock_timestamp()
