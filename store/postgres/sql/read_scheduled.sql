-- Scheduled events, in the columns and the order of read_all.sql.
--   $1 ids uuid[]
SELECT 0::bigint AS global_position, id, stream_id, event_type, 0::bigint AS version, schema_version, metadata::text, tags, payload,
       NULL::timestamptz AS created_at
  FROM scheduled_events
 WHERE id = ANY ($1)
 ORDER BY due_at, id
