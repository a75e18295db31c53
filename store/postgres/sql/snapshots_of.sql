-- Snapshots of a category in one shape, any $3 of them.
--   $1 stream_type text   $2 schema_version integer   $3 limit integer   ->   stream_id text, version bigint, snapshot_data text
SELECT stream_id, version, snapshot_data::text FROM snapshots WHERE stream_type = $1 AND schema_version = $2 LIMIT $3
