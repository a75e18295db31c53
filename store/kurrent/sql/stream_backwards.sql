-- A stream's events up to a version, the last first. Large ones end a batch early.
--   $1 stream_id text   $2 first version bigint   $3 last version bigint   $4 limit bigint   $5 bytes at most, but one event at least
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata, tags, payload, created_at
  FROM (SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text AS metadata, tags, payload, created_at,
               sum(octet_length(payload) + pg_column_size(metadata)) OVER (ORDER BY version DESC) AS bytes,
               row_number() OVER (ORDER BY version DESC) AS n
          FROM events
         WHERE stream_id = $1 AND version >= $2 AND version <= $3
         ORDER BY version DESC
         LIMIT $4) AS following
 WHERE bytes <= $5 OR n = 1
 ORDER BY version DESC
