-- The version of a stream's last event, NULL for a stream that has none.
--   $1 stream_id text
SELECT version FROM events WHERE stream_id = $1 ORDER BY version DESC LIMIT 1
