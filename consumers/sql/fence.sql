-- Raise the epochs of a projection above all that it and another one have had: whoever ran either can't write any more.
--   $1 projection text   $2 the other text
UPDATE projection_offsets
   SET epoch = 1 + (SELECT max(epoch) FROM projection_offsets WHERE projection IN ($1, $2)), updated_at = now()
 WHERE projection = $1
