-- Let a projection begin anew: who runs it is fenced by the epoch, and joins again.
--   $1 projection text   ->   partition of each row
UPDATE projection_offsets
   SET epoch = epoch + 1, next_offset = 0, last_position = 0, events = 0, last_late = 0, built_to = 0, topic_id = NULL, updated_at = now()
 WHERE projection = $1
RETURNING partition
