-- The rights of the relay: it reads the log, writes what it keeps of itself, and nothing that could change history. It can't read
-- the keys of personal data, which it publishes as they are stored.
-- {role} is replaced by the quoted name; names are not qualified, so the grants go to the log of the search_path.
GRANT SELECT ON events, links, event_types, eventspine_migrations, registry_settings TO {role};
GRANT SELECT, INSERT ON schemas, subjects, envelopes TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON relays, relay_shards, relay_workers, relay_topics, relay_parked, relay_late TO {role};
GRANT SELECT, TRUNCATE ON outbox, outbox_0, outbox_1, outbox_2 TO {role};
GRANT SELECT, INSERT ON outbox_relay TO {role};
