-- Save how far a persistent subscription has come; a place never goes back.
--   $1 source text   $2 group text   $3 place bigint
UPDATE kurrent_groups SET place = $3 WHERE source = $1 AND group_name = $2 AND place < $3
