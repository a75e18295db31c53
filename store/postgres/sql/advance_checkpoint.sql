-- Move a checkpoint forward within the caller's transaction. No row comes back if it is there or further already.
--   $1 subscription_id text   $2 last_position bigint   ->   last_position bigint
INSERT INTO subscription_checkpoints AS saved (subscription_id, last_position) VALUES ($1, $2)
    ON CONFLICT ON CONSTRAINT subscription_checkpoints_pkey
    DO UPDATE SET last_position = EXCLUDED.last_position, updated_at = now()
     WHERE saved.last_position < EXCLUDED.last_position
RETURNING last_position
