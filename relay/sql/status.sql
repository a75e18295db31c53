-- The shards of a relay, and what the log holds behind each.
--   $1 relay_id text
SELECT s.shard, s.state, CASE WHEN s.leased_until > clock_timestamp() THEN s.worker_id END AS owner, s.position, s.published, s.rate,
       (SELECT coalesce(max(e.global_position), 0) FROM events e) - s.position AS lag_events,
       coalesce((SELECT extract(epoch FROM clock_timestamp() - e.created_at) FROM events e WHERE e.global_position = s.position + 1), 0)::float8
           AS lag_s,
       extract(epoch FROM clock_timestamp() - s.updated_at)::float8 AS seen_s
  FROM relay_shards s WHERE s.relay_id = $1 ORDER BY s.shard
