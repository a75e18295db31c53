-- The name under which the outbox is published.
--   ->   topic_prefix text, name text
SELECT topic_prefix, name FROM outbox_relay
