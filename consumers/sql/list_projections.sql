-- How far projections are: one row for each partition that one has ever had.
--   $1 projection text, "" for all
--   ->   projection, topic, partition, epoch, next_offset, last_position, events, parked, paused, idle_s, built_to, last_late
SELECT o.projection, o.topic, o.partition, o.epoch, o.next_offset, o.last_position, o.events,
       (SELECT count(*) FROM projection_parked p
         WHERE p.projection = o.projection AND p.topic = o.topic AND p.partition = o.partition AND p.state <> 'skipped') AS parked,
       coalesce((SELECT c.paused FROM projections c WHERE c.projection = o.projection), false) AS paused,
       extract(epoch FROM clock_timestamp() - o.updated_at)::float8 AS idle_s, o.built_to, o.last_late
  FROM projection_offsets o
 WHERE $1 IN ('', o.projection)
 ORDER BY o.projection, o.topic, o.partition
