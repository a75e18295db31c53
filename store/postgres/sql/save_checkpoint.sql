-- Move a checkpoint forward; a lower position than the saved one is ignored.
--   $1 subscription_id text   $2 last_position bigint
INSERT INTO subscription_checkpoints AS saved (subscription_id, last_position) VALUES ($1, $2)
    ON CONFLICT ON CONSTRAINT subscription_checkpoints_pkey
    DO UPDATE SET last_position = EXCLUDED.last_position, updated_at = now()
     WHERE saved.last_position < EXCLUDED.last_position
