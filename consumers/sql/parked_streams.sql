-- The streams of which events are set aside.
--   $1 projection text   $2 topics text[]   $3 partitions int[]   ->   topic, partition, stream_id
SELECT DISTINCT p.topic, p.partition, p.stream_id
  FROM projection_parked p JOIN unnest($2::text[], $3::int[]) AS mine (topic, partition) USING (topic, partition)
 WHERE p.projection = $1 AND p.state <> 'skipped'
