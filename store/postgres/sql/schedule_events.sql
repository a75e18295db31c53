-- Keep events until they are due. Those without a time of their own are due so many seconds from now.
--   $1 reaction text   $2 ids uuid[]   $3 keys text[]   $4 times timestamptz[]   $5 seconds float8[]   $6 stream ids text[]
--   $7 event types text[]   $8 schema versions int[]   $9 payloads bytea[]   $10 metadata text[]   $11 tags as array literals text[]
INSERT INTO scheduled_events (reaction, id, key, due_at, stream_id, event_type, schema_version, payload, metadata, tags)
SELECT $1, o.id, o.key, coalesce(o.due_at, clock_timestamp() + o.after_s * interval '1 second'), o.stream_id, o.event_type,
       o.schema_version, o.payload, o.metadata::jsonb, o.tags::text[]
  FROM unnest($2::uuid[], $3::text[], $4::timestamptz[], $5::float8[], $6::text[], $7::text[], $8::int[], $9::bytea[], $10::text[],
              $11::text[]) AS o (id, key, due_at, after_s, stream_id, event_type, schema_version, payload, metadata, tags)
