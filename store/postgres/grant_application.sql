-- What a program needs that appends, reads, subscribes and keeps snapshots, and nothing that could change history.
-- {role} is replaced by the quoted name; names are not qualified, so the grants go to the log of the search_path.
GRANT SELECT, INSERT ON events, event_tags, links, schemas, event_types, subjects, envelopes, subject_keys TO {role};
GRANT SELECT, INSERT ON outbox, outbox_0, outbox_1, outbox_2 TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON snapshots, subscription_checkpoints, group_buckets, group_workers, parked_events TO {role};
GRANT SELECT, INSERT, UPDATE, DELETE ON scheduled_events, kurrent_groups, kurrent_parked TO {role};
GRANT SELECT, INSERT ON reaction_marks TO {role};
GRANT SELECT ON eventspine_migrations, registry_settings TO {role};
GRANT SELECT ON relay_topics, relay_parked, relay_late TO {role}; -- by which a reader of its own writes knows where they are
