-- The NOTIFY channel on which send_messages() tells the last position.
SELECT 'eventspine_' || 'outbox'::regclass::oid
