-- The topics of a relay as it first saw them.
--   $1 relay_id text   ->   topic text, partitions int, kafka_id text
SELECT topic, partitions, kafka_id FROM relay_topics WHERE relay_id = $1
