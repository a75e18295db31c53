-- What streams hold, to compare with where they were copied from: how many events, and the last one's id and revision there.
--   $1 stream_ids text[]   ->   stream_id text, events bigint, id text, revision bigint
SELECT counted.stream_id,
       counted.events,
       coalesce(e.metadata -> 'kurrent' ->> 'id', e.id::text) AS id,
       coalesce((e.metadata -> 'kurrent' ->> 'revision')::bigint, e.version - 1) AS revision
  FROM (SELECT stream_id, count(*) AS events, max(version) AS version
          FROM events
         WHERE stream_id = ANY ($1)
         GROUP BY stream_id) AS counted
  JOIN events e ON e.stream_id = counted.stream_id AND e.version = counted.version
