-- Delete versions permanently. Their schemas stay, with their ids.
--   $1 subject text   $2 versions int[]
DELETE FROM subjects WHERE subject = $1 AND version = ANY ($2)
