-- Become the owner of partitions: raise their epochs, which waits for an older owner's transaction and fences it after that.
--   $1 projection text   $2 topics text[]   $3 partitions int[]
--   ->   topic, partition, epoch, next_offset, last_position, events, last_late
INSERT INTO projection_offsets AS mine (projection, topic, partition, epoch)
SELECT $1, topic, partition, 1 FROM unnest($2::text[], $3::int[]) AS claimed (topic, partition) ORDER BY topic, partition
    ON CONFLICT ON CONSTRAINT projection_offsets_pkey DO UPDATE SET epoch = mine.epoch + 1, updated_at = now()
RETURNING topic, partition, epoch, next_offset, last_position, events, last_late
