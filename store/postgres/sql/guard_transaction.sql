-- Bound how long an append in somebody's own transaction can hold the log's lock if its owner falls silent (and that holds up
-- every append): for the rest of the transaction, unless the owner has set a bound.
SELECT set_config('idle_in_transaction_session_timeout', '10s', true)
 WHERE current_setting('idle_in_transaction_session_timeout') = '0'
