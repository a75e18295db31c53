-- How far a projection is.
--   $1 projection text   ->   topic, partition, next_offset, last_position
SELECT topic, partition, next_offset, last_position FROM projection_offsets WHERE projection = $1 ORDER BY topic, partition
