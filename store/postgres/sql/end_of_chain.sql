-- The last position that is in the hash chain, 0 if nothing is.
--   ->   bigint
SELECT coalesce(max(last_position), 0) FROM links
