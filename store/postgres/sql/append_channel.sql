-- The NOTIFY channel on which append_events() tells the last position.
SELECT 'eventspine_' || 'events'::regclass::oid
