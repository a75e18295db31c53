-- The last link of the hash chain that ends at or before a position.
--   $1 position bigint   ->   number bigint, digest text (hex); no row if there is none
SELECT number, encode(digest, 'hex') AS digest FROM links WHERE last_position <= $1 ORDER BY last_position DESC LIMIT 1
