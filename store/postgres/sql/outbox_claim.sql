-- Note under which name the outbox is published, unless it is published already.
--   $1 topic_prefix text   $2 name text
INSERT INTO outbox_relay (topic_prefix, name) VALUES ($1, $2) ON CONFLICT ON CONSTRAINT outbox_relay_pkey DO NOTHING
