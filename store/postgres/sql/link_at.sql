-- The link of the hash chain whose batch ends at a position.
--   $1 last position bigint   ->   number bigint, digest bytea; no row if no batch ends there
SELECT number, digest FROM links WHERE last_position = $1
