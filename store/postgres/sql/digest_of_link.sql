-- The digest of a link of the hash chain.
--   $1 number bigint   ->   text (hex); no row if there is no such link
SELECT encode(digest, 'hex') FROM links WHERE number = $1
