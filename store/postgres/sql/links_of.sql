-- Links by number.
--   $1 numbers bigint[]
SELECT number, last_position, leaves, digest FROM links WHERE number = ANY ($1)
