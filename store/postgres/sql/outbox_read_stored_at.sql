-- Messages at given positions, in order.
--   $1 positions bigint[]
SELECT position, message_id::text, topic || '/' || key, topic, key, value, headers::text
  FROM outbox WHERE position = ANY ($1::bigint[]) ORDER BY position
