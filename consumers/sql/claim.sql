-- Become the owner of partitions: raise their epochs, which waits for an older owner's transaction and fences it after that.
-- Partitions of Kafka begin where the log (topic '') was read to, and whoever reads that is fenced, too.
--   $1 projection text   $2 topics text[]   $3 partitions int[]   $4 ids of the topics text[]
--   ->   topic, partition, topic id at first sight, epoch, next_offset, last_position, events, last_late, built_to
WITH log AS (
    UPDATE projection_offsets SET epoch = epoch + 1 WHERE projection = $1 AND topic = '' AND '' <> ALL ($2) RETURNING next_offset
)
INSERT INTO projection_offsets AS mine (projection, topic, partition, topic_id, built_to, epoch)
SELECT $1, topic, partition, topic_id, coalesce((SELECT next_offset FROM log), 0), 1
  FROM unnest($2::text[], $3::int[], $4::text[]) AS claimed (topic, partition, topic_id) ORDER BY topic, partition
    ON CONFLICT ON CONSTRAINT projection_offsets_pkey
    DO UPDATE SET epoch = mine.epoch + 1, topic_id = coalesce(mine.topic_id, EXCLUDED.topic_id), updated_at = now()
RETURNING topic, partition, topic_id, epoch, next_offset, last_position, events, last_late, built_to
