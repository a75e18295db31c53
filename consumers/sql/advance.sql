-- Move offsets forward, each only if epoch and offset are still what the batch started from.
--   $1 projection text   $2 topics text[]   $3 partitions int[]   $4 epochs bigint[]   $5 offsets before bigint[]
--   $6 offsets after bigint[]   $7 last positions bigint[]   $8 events bigint[]   $9 last late numbers bigint[]
--   $10 how long the transaction may stand still, unless the server sets a limit itself text
--   ->   a row for each that was moved
UPDATE projection_offsets AS mine
   SET next_offset = batch.next_offset, last_position = batch.last_position, events = batch.events,
       last_late = batch.last_late, updated_at = now()
  FROM unnest($2::text[], $3::int[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[])
       AS batch (topic, partition, epoch, expected_offset, next_offset, last_position, events, last_late)
 WHERE mine.projection = $1 AND mine.topic = batch.topic AND mine.partition = batch.partition
   AND mine.epoch = batch.epoch AND mine.next_offset = batch.expected_offset
RETURNING set_config('synchronous_commit', 'off', true) AS asynchronous, -- a crash takes rows and offsets back together, and Kafka is read again
          CASE current_setting('idle_in_transaction_session_timeout')
               WHEN '0' THEN set_config('idle_in_transaction_session_timeout', $10, true) END -- a frozen owner holds up its heir
