-- Say in which partitions of Kafka streams lie of which events are parked that came from the log.
--   $1 projection text   $2 stream ids text[]   $3 topics text[]   $4 partitions int[]
UPDATE projection_parked AS mine SET topic = theirs.topic, partition = theirs.partition
  FROM unnest($2::text[], $3::text[], $4::int[]) AS theirs (stream_id, topic, partition)
 WHERE mine.projection = $1 AND mine.topic = '' AND mine.stream_id = theirs.stream_id
