-- Forget all that is parked. Behind reset.sql, in its transaction: that waits for whoever writes, and may park, and this one sees it.
--   $1 projection text
DELETE FROM projection_parked WHERE projection = $1
