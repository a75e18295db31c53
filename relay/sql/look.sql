-- What a worker has to know: how the relay is cut, whether it is paused, how many workers live, and which shards are its own.
--   $1 relay_id text   $2 worker_id text   $3 lease in seconds float8
SELECT r.shards, r.generation, r.paused,
       (SELECT count(*) FROM relay_workers w
         WHERE w.relay_id = r.relay_id AND w.seen_at > clock_timestamp() - make_interval(secs => $3)) AS workers,
       (SELECT coalesce(array_agg(s.shard ORDER BY s.shard), '{}') FROM relay_shards s
         WHERE s.relay_id = r.relay_id AND s.worker_id = $2 AND s.leased_until > clock_timestamp() AND s.shard < r.shards) AS held,
       EXISTS (SELECT FROM relay_parked p WHERE p.relay_id = r.relay_id AND p.retry) AS retry,
       (SELECT count(*) FROM relay_parked p WHERE p.relay_id = r.relay_id) AS parked,
       r.discards
  FROM relays r WHERE r.relay_id = $1
