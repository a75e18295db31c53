-- What the hash chain remembers of an event: SHA-256 of all its columns but event_data, which follows from the payload.
--
-- The columns are laid out as Postgres sends a record in its binary protocol: the number of columns (int32), then for each
-- its type's OID (int32), its length (int32, -1 = NULL) and its bytes. No two events have the same layout.
-- Source: https://www.postgresql.org/docs/current/protocol-message-formats.html, and record_send() of PostgreSQL.
CREATE OR REPLACE FUNCTION event_digest(e events) RETURNS bytea LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT sha256(record_send(ROW(
        e.global_position, e.id, e.stream_id, e.stream_type, e.version, e.event_type, e.schema_version,
        e.metadata, e.tags, e.payload, e.created_at)))
$$;
