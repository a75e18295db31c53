-- Claim or renew the lease of a persistent subscription; no row comes back if another door holds it, or there is none.
--   $1 source text   $2 group text   $3 door uuid   $4 address text   $5 seconds float8
-- `claims` goes up when the door is another one than the last.
UPDATE kurrent_groups
   SET claims = claims + (door IS DISTINCT FROM $3)::int, door = $3, address = $4, leased_until = now() + make_interval(secs => $5)
 WHERE source = $1 AND group_name = $2 AND (door IS NOT DISTINCT FROM $3 OR leased_until <= now())
RETURNING claims, place, settings::text AS settings
