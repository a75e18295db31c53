-- Find what matches the items of one query, the last events first: find_events() read from the other end. See there for the items.
--   after, until   look at events behind `after`, up to `until`
--   most           at most so many events for each item, the last ones
CREATE OR REPLACE FUNCTION find_events_backwards(
    tags text[], event_types text[], categories text[], correlations text[], after bigint, until bigint, most bigint
) RETURNS TABLE ("position" bigint)
LANGUAGE sql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
    SELECT found.global_position
      FROM (SELECT nullif(o.tags::text[], '{}') AS tags, nullif(o.types::text[], '{}') AS types,
                   nullif(o.categories::text[], '{}') AS categories, o.correlation
              FROM unnest(tags, event_types, categories, correlations) AS o (tags, types, categories, correlation)) AS item
     CROSS JOIN LATERAL (
       (SELECT t.global_position
          FROM event_tags t
         WHERE item.tags IS NOT NULL AND t.tag = item.tags[1] AND t.global_position > after AND t.global_position <= until
           AND (item.types IS NULL OR t.event_type = ANY (item.types))
           AND (cardinality(item.tags) = 1 OR NOT EXISTS (
                 SELECT FROM unnest(item.tags[2:]) AS other (tag)
                  WHERE NOT EXISTS (SELECT FROM event_tags x WHERE x.tag = other.tag AND x.global_position = t.global_position)))
           AND ((item.categories IS NULL AND item.correlation IS NULL) OR EXISTS (
                 SELECT FROM events e
                  WHERE e.global_position = t.global_position
                    AND (item.categories IS NULL OR e.stream_type = ANY (item.categories))
                    AND (item.correlation IS NULL OR e.metadata ->> 'correlation_id' = item.correlation)))
         ORDER BY t.global_position DESC LIMIT most)
       UNION ALL
       (SELECT e.global_position
          FROM events e
         WHERE item.tags IS NULL AND item.correlation IS NOT NULL
           AND e.metadata ->> 'correlation_id' = item.correlation AND e.global_position > after AND e.global_position <= until
           AND (item.types IS NULL OR e.event_type = ANY (item.types))
           AND (item.categories IS NULL OR e.stream_type = ANY (item.categories))
         ORDER BY e.global_position DESC LIMIT most)
       UNION ALL
       (SELECT e.global_position
          FROM unnest(item.types) AS wanted (type)
         CROSS JOIN LATERAL (
               SELECT e.global_position FROM events e
                WHERE e.event_type = wanted.type AND e.global_position > after AND e.global_position <= until
                  AND (item.categories IS NULL OR e.stream_type = ANY (item.categories))
                ORDER BY e.event_type DESC, e.global_position DESC LIMIT most) AS e
         WHERE item.tags IS NULL AND item.correlation IS NULL)
       UNION ALL
       (SELECT e.global_position
          FROM unnest(item.categories) AS wanted (category)
         CROSS JOIN LATERAL (
               SELECT e.global_position FROM events e
                WHERE e.stream_type = wanted.category AND e.global_position > after AND e.global_position <= until
                ORDER BY e.stream_type DESC, e.global_position DESC LIMIT most) AS e
         WHERE item.tags IS NULL AND item.correlation IS NULL AND item.types IS NULL)
       UNION ALL
       (SELECT e.global_position
          FROM events e
         WHERE item.tags IS NULL AND item.correlation IS NULL AND item.types IS NULL AND item.categories IS NULL
           AND e.global_position > after AND e.global_position <= until
         ORDER BY e.global_position DESC LIMIT most)) AS found
$$;
