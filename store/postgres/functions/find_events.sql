-- Find what matches queries. An event matches a query if it matches one of its items, and an item if it matches all that the
-- item names: one of the categories, one of the event types, the correlation id, and every one of the tags.
--
-- Per item (arrays of the same length; several items may belong to one query):
--   owners        int[]     the query, as the caller counts them
--   after         bigint[]  look at events behind this position only
--   tags, event_types, categories   text[]  each an array literal like {"a","b"}; NULL or {} = not named
--   correlations  text[]    NULL = not named
-- until   look at events up to this position only
-- most    at most so many events for each item, the first ones
--
-- Returns (owner, position) in no order; an event that matches several items comes several times. Each branch below is driven by
-- one index, and only the one that fits an item is run.
CREATE OR REPLACE FUNCTION find_events(
    owners int[], after bigint[], tags text[], event_types text[], categories text[], correlations text[], until bigint, most bigint
) RETURNS TABLE (owner int, "position" bigint)
LANGUAGE sql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
    SELECT item.owner, found.global_position
      FROM (SELECT o.owner, o.after, nullif(o.tags::text[], '{}') AS tags, nullif(o.types::text[], '{}') AS types,
                   nullif(o.categories::text[], '{}') AS categories, o.correlation
              FROM unnest(owners, after, tags, event_types, categories, correlations)
                   AS o (owner, after, tags, types, categories, correlation)) AS item
     CROSS JOIN LATERAL (
       (SELECT t.global_position
          FROM event_tags t
         WHERE item.tags IS NOT NULL AND t.tag = item.tags[1] AND t.global_position > item.after AND t.global_position <= until
           AND (item.types IS NULL OR t.event_type = ANY (item.types))
           AND (cardinality(item.tags) = 1 OR NOT EXISTS (
                 SELECT FROM unnest(item.tags[2:]) AS other (tag)
                  WHERE NOT EXISTS (SELECT FROM event_tags x WHERE x.tag = other.tag AND x.global_position = t.global_position)))
           AND ((item.categories IS NULL AND item.correlation IS NULL) OR EXISTS (
                 SELECT FROM events e
                  WHERE e.global_position = t.global_position
                    AND (item.categories IS NULL OR e.stream_type = ANY (item.categories))
                    AND (item.correlation IS NULL OR e.metadata ->> 'correlation_id' = item.correlation)))
         ORDER BY t.global_position LIMIT most)
       UNION ALL
       (SELECT e.global_position
          FROM events e
         WHERE item.tags IS NULL AND item.correlation IS NOT NULL
           AND e.metadata ->> 'correlation_id' = item.correlation AND e.global_position > item.after AND e.global_position <= until
           AND (item.types IS NULL OR e.event_type = ANY (item.types))
           AND (item.categories IS NULL OR e.stream_type = ANY (item.categories))
         ORDER BY e.global_position LIMIT most)
       UNION ALL
       (SELECT e.global_position
          FROM unnest(item.types) AS wanted (type)
         CROSS JOIN LATERAL (
               SELECT e.global_position FROM events e
                WHERE e.event_type = wanted.type AND e.global_position > item.after AND e.global_position <= until
                  AND (item.categories IS NULL OR e.stream_type = ANY (item.categories))
                ORDER BY e.event_type, e.global_position LIMIT most) AS e
         WHERE item.tags IS NULL AND item.correlation IS NULL)
       UNION ALL
       (SELECT e.global_position
          FROM unnest(item.categories) AS wanted (category)
         CROSS JOIN LATERAL (
               SELECT e.global_position FROM events e
                WHERE e.stream_type = wanted.category AND e.global_position > item.after AND e.global_position <= until
                ORDER BY e.stream_type, e.global_position LIMIT most) AS e
         WHERE item.tags IS NULL AND item.correlation IS NULL AND item.types IS NULL)
       UNION ALL
       (SELECT e.global_position
          FROM events e
         WHERE item.tags IS NULL AND item.correlation IS NULL AND item.types IS NULL AND item.categories IS NULL
           AND e.global_position > item.after AND e.global_position <= until
         ORDER BY e.global_position LIMIT most)) AS found
$$;
