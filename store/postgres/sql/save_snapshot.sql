-- Keep a stream's newest snapshot; one of a newer version, or of a newer schema version, stays.
--   $1 stream_id text   $2 stream_type text   $3 snapshot_data jsonb   $4 version bigint   $5 schema_version integer
INSERT INTO snapshots AS saved (stream_id, stream_type, snapshot_data, version, schema_version) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT ON CONSTRAINT snapshots_pkey
    DO UPDATE SET snapshot_data = EXCLUDED.snapshot_data, version = EXCLUDED.version, schema_version = EXCLUDED.schema_version,
                  created_at = now()
     WHERE (saved.schema_version, saved.version) < (EXCLUDED.schema_version, EXCLUDED.version)
