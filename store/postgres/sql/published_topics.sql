-- How many partitions the topics of a relay have.
--   $1 relay_id text   ->   topic text, partitions int
SELECT topic, partitions FROM relay_topics WHERE relay_id = $1
