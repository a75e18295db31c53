-- Make one of the parts of a build, which have all come equally far. Who builds a part can't write any more.
--   $1 projection text   $2 position bigint   ->   nothing if a part has not come there
WITH parts AS (
    SELECT partition, epoch, next_offset FROM projection_offsets WHERE projection = $1 AND topic = '' ORDER BY partition FOR UPDATE
), others AS (
    DELETE FROM projection_offsets o USING parts
     WHERE o.projection = $1 AND o.topic = '' AND o.partition = parts.partition AND parts.partition > 0
       AND (SELECT bool_and(next_offset = $2) FROM parts)
), parked AS (
    UPDATE projection_parked SET partition = 0 WHERE projection = $1 AND topic = '' AND (SELECT bool_and(next_offset = $2) FROM parts)
)
UPDATE projection_offsets
   SET epoch = (SELECT max(epoch) FROM parts) + 1, last_position = $2, events = $2, updated_at = now()
 WHERE projection = $1 AND topic = '' AND partition = 0 AND (SELECT bool_and(next_offset = $2) FROM parts)
RETURNING epoch
