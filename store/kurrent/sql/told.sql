-- What was said of streams after a position: metadata and tombstones, and the defaults in the stream $settings, in order.
--   $1 after position bigint   $2 up to and including position bigint   $3 event types text[]   $4 limit bigint
--   $5 id of the stream $settings text
SELECT *
  FROM ((SELECT global_position, stream_id, event_type, payload
           FROM events
          WHERE event_type = ANY ($3) AND global_position > $1 AND global_position <= $2
          ORDER BY global_position
          LIMIT $4)
        UNION ALL
        (SELECT global_position, stream_id, event_type, payload
           FROM events
          WHERE stream_id = $5 AND event_type <> ALL ($3) AND schema_version = 0 AND global_position > $1 AND global_position <= $2
          ORDER BY version
          LIMIT $4)) AS told
 ORDER BY global_position
 LIMIT $4
