-- End the lease of a persistent subscription, if this door still holds it.
--   $1 source text   $2 group text   $3 door uuid
UPDATE kurrent_groups SET leased_until = '-infinity' WHERE source = $1 AND group_name = $2 AND door = $3
