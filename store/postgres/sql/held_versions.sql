-- The event types in the log, and of each the schema versions and categories among its first and its last $1 events. A type costs
-- a few looks into its index however many events it has: nobody reads the whole log to know what is in it.
--   $1 sample integer
--   ->   event_type text, schema_version integer, category text, whole boolean (no event of the type was left out)
WITH RECURSIVE types AS (
    (SELECT event_type FROM events ORDER BY event_type LIMIT 1)
    UNION ALL
    SELECT (SELECT e.event_type FROM events e WHERE e.event_type > t.event_type ORDER BY e.event_type LIMIT 1)
      FROM types t
     WHERE t.event_type IS NOT NULL
)
SELECT t.event_type, seen.schema_version, seen.stream_type AS category,
       NOT EXISTS (SELECT FROM events e WHERE e.event_type = t.event_type
                      AND e.global_position > bounds.first_end AND e.global_position < bounds.last_begin) AS whole
  FROM types t
 CROSS JOIN LATERAL (
       SELECT max(f.global_position) AS first_end FROM (SELECT global_position FROM events e
        WHERE e.event_type = t.event_type ORDER BY global_position LIMIT $1) f) AS first_ones
 CROSS JOIN LATERAL (
       SELECT first_ones.first_end, min(l.global_position) AS last_begin FROM (SELECT global_position FROM events e
        WHERE e.event_type = t.event_type ORDER BY global_position DESC LIMIT $1) l) AS bounds
 CROSS JOIN LATERAL (
       SELECT schema_version, stream_type FROM events e
        WHERE e.event_type = t.event_type AND e.global_position <= bounds.first_end
        UNION
       SELECT schema_version, stream_type FROM events e
        WHERE e.event_type = t.event_type AND e.global_position >= bounds.last_begin) AS seen
 WHERE t.event_type IS NOT NULL
 ORDER BY t.event_type, seen.schema_version, seen.stream_type
