-- The id of the message at a position; NULL where the outbox holds none: it was trimmed if `reached`, else it was never sent.
--   $1 position bigint   ->   id text, reached boolean
SELECT (SELECT message_id::text FROM outbox WHERE position = $1) AS id,
       $1 <= (SELECT coalesce(max(position), 0) FROM outbox) AS reached
