-- What the log holds behind a position, by the database's clock.
--   $1 position bigint   ->   events bigint, seconds since the first of them was recorded float8
SELECT greatest((SELECT coalesce(max(global_position), 0) FROM events) - $1, 0) AS events,
       coalesce((SELECT extract(epoch FROM clock_timestamp() - created_at) FROM events WHERE global_position = $1 + 1), 0)::float8 AS seconds
