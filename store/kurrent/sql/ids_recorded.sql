-- Which of these ids are recorded, in whatever stream.
--   $1 ids uuid[]
SELECT id FROM events WHERE id = ANY ($1)
