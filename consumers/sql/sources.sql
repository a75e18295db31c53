-- What speaks against a change of source.
--   $1 projection text   ->   whether it has gone on from Kafka, whether events from the log are parked
SELECT EXISTS (SELECT FROM projection_offsets WHERE projection = $1 AND topic <> '' AND next_offset > 0) AS on_kafka,
       EXISTS (SELECT FROM projection_parked WHERE projection = $1 AND topic = '' AND state <> 'skipped') AS parked
