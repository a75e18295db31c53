-- Park events, or say anew why they are parked.
--   $1 group_id text   $2 buckets of the group int   $3 positions bigint[]   $4 stream_ids text[]   $5 reasons text[]   $6 tries int[]
INSERT INTO parked_events AS p (group_id, global_position, stream_id, bucket, reason, tries)
SELECT $1, n.position, n.stream_id, abs(hashtextextended(n.stream_id, 0) % $2::int), n.reason, n.tries
  FROM unnest($3::bigint[], $4::text[], $5::text[], $6::int[]) AS n (position, stream_id, reason, tries)
    ON CONFLICT ON CONSTRAINT parked_events_pkey
    DO UPDATE SET reason = EXCLUDED.reason, tries = EXCLUDED.tries, retry = false
