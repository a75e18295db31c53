-- Ask for something to be done with parked streams. Only the event that is to be discarded says so: what is behind it is retried. So
-- after a crash in between, no other is discarded.
--   $1 projection text   $2 stream_id text, "" for all   $3 what text   ->   stream_id of each event
UPDATE projection_parked AS mine
   SET asked = CASE WHEN $3 = 'discard' AND EXISTS (
           SELECT FROM projection_parked AS earlier
            WHERE earlier.projection = $1 AND earlier.topic = mine.topic AND earlier.partition = mine.partition
              AND earlier.stream_id = mine.stream_id AND earlier.state <> 'skipped' AND earlier.global_position < mine.global_position
       ) THEN 'retry' ELSE $3 END
 WHERE projection = $1 AND $2 IN ('', stream_id) AND state <> 'skipped'
RETURNING stream_id
