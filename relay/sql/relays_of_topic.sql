-- The relays that write to a topic.
--   $1 topic text   ->   relay_id text
SELECT relay_id FROM relay_topics WHERE topic = $1 ORDER BY relay_id
