-- Say which schema a version of an event type has. A second time changes nothing.
--   $1 event_type text   $2 schema_version int   $3 schema_id int
INSERT INTO event_types (event_type, schema_version, schema_id) VALUES ($1, $2, $3)
    ON CONFLICT ON CONSTRAINT event_types_pkey DO NOTHING
