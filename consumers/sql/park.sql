-- Set events aside, or say anew why they are.
--   $1 projection text   $2 topics text[]   $3 partitions int[]   $4 positions bigint[]   $5 late numbers bigint[]   $6 stream ids text[]
--   $7 event types text[]   $8 states text[]   $9 reasons text[]   $10 tries int[]   $11 headers bytea[]   $12 keys bytea[]   $13 values bytea[]
INSERT INTO projection_parked AS mine
       (projection, topic, partition, global_position, late, stream_id, event_type, state, reason, tries, headers, key, value)
SELECT $1, * FROM unnest($2::text[], $3::int[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::int[],
                         $11::bytea[], $12::bytea[], $13::bytea[])
    ON CONFLICT ON CONSTRAINT projection_parked_pkey
    DO UPDATE SET state = EXCLUDED.state, reason = EXCLUDED.reason, tries = EXCLUDED.tries, asked = NULL
