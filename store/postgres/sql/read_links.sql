-- The next links of the hash chain.
--   $1 after number bigint
SELECT number, last_position, leaves, digest FROM links WHERE number > $1 ORDER BY number LIMIT 500
