-- Move buckets forward, each only if its epoch is still the owner's.
--   $1 group_id text   $2 buckets int[]   $3 epochs bigint[]   $4 positions bigint[]   ->   a row for each that was moved
UPDATE group_buckets AS b SET last_position = m.position
  FROM unnest($2::int[], $3::bigint[], $4::bigint[]) AS m (bucket, epoch, position)
 WHERE b.group_id = $1 AND b.bucket = m.bucket AND b.epoch = m.epoch
RETURNING 1
