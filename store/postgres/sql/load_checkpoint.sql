--   $1 subscription_id text   ->   last_position bigint
SELECT last_position FROM subscription_checkpoints WHERE subscription_id = $1
