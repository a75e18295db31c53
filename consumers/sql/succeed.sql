-- Let a build go on where the projection that it replaces was: at its offsets, without what it was built from.
--   $1 projection text (the build's rows bear its name by now)   $2 name of the one that is replaced text
WITH built AS (
    SELECT next_offset AS position FROM projection_offsets WHERE projection = $1 AND topic = '' AND partition = 0
)
INSERT INTO projection_offsets AS mine
       (projection, topic, partition, epoch, next_offset, last_position, events, last_late, built_to, topic_id)
SELECT $1, topic, partition, epoch, next_offset, last_position, 0, last_late, built.position, topic_id
  FROM projection_offsets, built
 WHERE projection = $2 AND topic <> ''
