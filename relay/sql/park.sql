-- Park events, or say anew why they are parked. An event that is parked stays so; asking for a retry is over with the try.
--   $1 relay_id text   $2 shard int   $3 positions bigint[]   $4 stream_ids text[]   $5 reasons text[]   $6 tries int[]
INSERT INTO relay_parked AS p (relay_id, global_position, stream_id, shard, reason, tries)
SELECT $1, n.position, n.stream_id, $2, n.reason, n.tries
  FROM unnest($3::bigint[], $4::text[], $5::text[], $6::int[]) AS n (position, stream_id, reason, tries)
    ON CONFLICT ON CONSTRAINT relay_parked_pkey
    DO UPDATE SET shard = EXCLUDED.shard, tries = p.tries + EXCLUDED.tries, retry = false,
                  reason = CASE WHEN EXCLUDED.tries > 0 THEN EXCLUDED.reason ELSE p.reason END
