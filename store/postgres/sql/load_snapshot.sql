-- A stream's snapshot.
--   $1 stream_id text   $2 schema_version integer   ->   version bigint, schema_version integer, snapshot_data text, created_at
SELECT version, schema_version, snapshot_data::text, created_at FROM snapshots WHERE stream_id = $1 AND schema_version = $2
