-- The next events of some buckets, each behind its own position.
--   $1 category text   $2 buckets of the group int   $3 buckets int[]   $4 after bigint[]   $5 up to and including bigint   $6 limit bigint
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text, tags, payload, created_at
  FROM events
  JOIN unnest($3::int[], $4::bigint[]) AS mine (bucket, after) ON mine.bucket = abs(hashtextextended(stream_id, 0) % $2::int)
 WHERE stream_type = $1 AND global_position > (SELECT min(a) FROM unnest($4::bigint[]) AS a) AND global_position <= $5
   AND global_position > mine.after
 ORDER BY stream_type, global_position
 LIMIT $6
