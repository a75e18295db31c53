-- Let a projection begin anew; whoever runs it was fenced before, and joins again.
--   $1 projection text   ->   partition of each row
UPDATE projection_offsets
   SET next_offset = 0, last_position = 0, events = 0, last_late = 0, built_to = 0, topic_id = NULL, updated_at = now()
 WHERE projection = $1
RETURNING partition
