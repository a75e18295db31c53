-- Count, by type, the events that contain one of some texts anywhere.
--   $1 texts text[]   ->   event_type text, count bigint
SELECT e.event_type, count(*) AS count
  FROM events e
 WHERE EXISTS (SELECT FROM unnest($1::text[]) AS v
                WHERE strpos(e.event_data::text, v) > 0 OR strpos(e.metadata::text, v) > 0 OR strpos(e.stream_id, v) > 0
                   OR strpos(array_to_string(e.tags, E'\n'), v) > 0 OR position(convert_to(v, 'UTF8') IN e.payload) > 0)
 GROUP BY e.event_type
 ORDER BY e.event_type
