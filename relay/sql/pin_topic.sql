-- Note a topic as it is when a relay first writes to it.
--   $1 relay_id text   $2 topic text   $3 partitions int   $4 Kafka's id of it text
INSERT INTO relay_topics (relay_id, topic, partitions, kafka_id) VALUES ($1, $2, $3, $4)
    ON CONFLICT ON CONSTRAINT relay_topics_pkey DO NOTHING
