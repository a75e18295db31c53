-- Lay down the parts of a build, if it was not begun before.
--   $1 projection text   $2 parts int
INSERT INTO projection_offsets (projection, topic, partition, epoch)
SELECT $1, '', part, 0 FROM generate_series(0, $2 - 1) AS part
 WHERE NOT EXISTS (SELECT FROM projection_offsets WHERE projection = $1)
