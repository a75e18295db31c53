-- Each category: its streams, events and event types.
--   ->   category text, streams bigint, events bigint, event_types bigint, first_position bigint, last_position bigint
SELECT e.stream_type AS category, count(*) FILTER (WHERE e.version = 1) AS streams, count(*) AS events,
       count(DISTINCT e.event_type) AS event_types, min(e.global_position) AS first_position, max(e.global_position) AS last_position
  FROM events e
 GROUP BY e.stream_type
 ORDER BY e.stream_type
