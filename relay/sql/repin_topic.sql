-- Note a topic anew, as it is now, or how it is to be made. All its records come in order then: numbers of late ones mean nothing
-- any more. (Those of other topics are forgotten with them: a reader needs one only until the record is consumed.)
--   $1 relay_id text   $2 topic text   $3 partitions int   $4 Kafka's id of it, or a plan in JSON text
WITH forgotten AS (DELETE FROM relay_late WHERE relay_id = $1)
INSERT INTO relay_topics (relay_id, topic, partitions, kafka_id) VALUES ($1, $2, $3, $4)
    ON CONFLICT ON CONSTRAINT relay_topics_pkey DO UPDATE SET partitions = EXCLUDED.partitions, kafka_id = EXCLUDED.kafka_id
