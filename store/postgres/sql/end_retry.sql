-- Streams were tried again: what is still parked of them waits for the next time that somebody asks.
--   $1 group_id text   $2 stream_ids text[]
UPDATE parked_events SET retry = false WHERE group_id = $1 AND stream_id = ANY ($2) AND retry
