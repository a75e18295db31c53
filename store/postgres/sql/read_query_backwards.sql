-- The events that match a query, the last first. $1 … $4 describe its items as find_events() takes them.
--   $1 tags text[]   $2 event types text[]   $3 categories text[]   $4 correlation ids text[]
--   $5 after position bigint   $6 up to and including position bigint   $7 limit bigint
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text, tags, payload, created_at
  FROM events
  JOIN (SELECT DISTINCT position
          FROM find_events_backwards($1, $2, $3, $4, $5, $6, $7)
         ORDER BY position DESC LIMIT $7) AS found ON found.position = global_position
 ORDER BY global_position DESC
