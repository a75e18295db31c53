-- Delete the snapshots of streams: they are made again from the events.
--   $1 stream_ids text[]   ->   stream_id text of each that there was
DELETE FROM snapshots WHERE stream_id = ANY ($1) RETURNING stream_id
