-- What somebody asks of a projection, and whether partitions have other owners by now: one row at least where there is any of it.
--   $1 projection text   $2 topics text[]   $3 partitions int[]   $4 epochs bigint[]   ->   fenced, paused, topic, partition, stream_id, asked
SELECT false AS fenced, p.paused, NULL AS topic, NULL::int AS partition, NULL AS stream_id, NULL AS asked
  FROM projections p WHERE p.projection = $1
 UNION ALL
SELECT true, false, o.topic, o.partition, NULL, NULL
  FROM projection_offsets o JOIN unnest($2::text[], $3::int[], $4::bigint[]) AS mine (topic, partition, epoch) USING (topic, partition)
 WHERE o.projection = $1 AND o.epoch <> mine.epoch
 UNION ALL
SELECT false, false, topic, partition, stream_id, min(asked) -- discard, of the first event, before retry, of those behind it
  FROM projection_parked WHERE projection = $1 AND asked IS NOT NULL GROUP BY topic, partition, stream_id
