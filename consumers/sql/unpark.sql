-- Forget parked events.
--   $1 projection text   $2 topics text[]   $3 partitions int[]   $4 positions bigint[]
DELETE FROM projection_parked AS mine
 USING unnest($2::text[], $3::int[], $4::bigint[]) AS done (topic, partition, global_position)
 WHERE mine.projection = $1 AND mine.topic = done.topic AND mine.partition = done.partition
   AND mine.global_position = done.global_position AND mine.state <> 'skipped'
