-- Forget parked events, and note under which numbers they were published late. One statement: who looks sees an event in one
-- of the two tables.
--   $1 relay_id text   $2 positions bigint[]   $3 numbers (header ce_latenumber), 0 = it was not published bigint[]
WITH noted AS (
    INSERT INTO relay_late (relay_id, global_position, late)
    SELECT $1, n.position, n.late FROM unnest($2::bigint[], $3::bigint[]) AS n (position, late) WHERE n.late > 0
        ON CONFLICT ON CONSTRAINT relay_late_pkey DO UPDATE SET late = EXCLUDED.late
)
DELETE FROM relay_parked WHERE relay_id = $1 AND global_position = ANY ($2::bigint[])
