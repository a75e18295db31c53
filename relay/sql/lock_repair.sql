-- Become the one that repairs a relay's topics, for as long as the connection is there.
--   $1 relay_id text   ->   boolean: false if another connection is that already
SELECT pg_try_advisory_lock(hashtextextended('eventspine relay repair ' || $1, 0))
