-- Ask for something to be done with parked streams.
--   $1 projection text   $2 stream_id text, "" for all   $3 what text   ->   stream_id of each event
UPDATE projection_parked SET asked = $3
 WHERE projection = $1 AND $2 IN ('', stream_id) AND state <> 'skipped'
RETURNING stream_id
