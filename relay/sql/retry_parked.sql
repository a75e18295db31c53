-- Ask for another try of the parked events of a stream, or of all.
--   $1 relay_id text   $2 stream_id text, NULL = all   ->   stream_id text
UPDATE relay_parked SET retry = true WHERE relay_id = $1 AND ($2::text IS NULL OR stream_id = $2) RETURNING stream_id
