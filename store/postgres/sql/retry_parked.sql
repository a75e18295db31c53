-- Ask to try parked streams again.
--   $1 group_id text   $2 stream_id text, NULL = all   ->   stream_id text of each
UPDATE parked_events SET retry = true
 WHERE group_id = $1 AND global_position IN (
       SELECT min(p.global_position) FROM parked_events p
        WHERE p.group_id = $1 AND p.stream_id = coalesce($2, p.stream_id) GROUP BY p.stream_id)
RETURNING stream_id
