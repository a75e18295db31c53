-- Note a topic anew, as it is now, or how it is to be made.
--   $1 relay_id text   $2 topic text   $3 partitions int   $4 Kafka's id of it, or a plan in JSON text
INSERT INTO relay_topics (relay_id, topic, partitions, kafka_id) VALUES ($1, $2, $3, $4)
    ON CONFLICT ON CONSTRAINT relay_topics_pkey DO UPDATE SET partitions = EXCLUDED.partitions, kafka_id = EXCLUDED.kafka_id
