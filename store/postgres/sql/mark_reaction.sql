-- Note that a reaction takes effect. Waits for another transaction that does the same.
--   $1 mark uuid   $2 reaction text   ->   true; no row if it has taken effect before
INSERT INTO reaction_marks (mark, reaction)
SELECT $1, $2 WHERE NOT EXISTS (SELECT FROM events WHERE id = $1)
    ON CONFLICT ON CONSTRAINT reaction_marks_pkey DO NOTHING
RETURNING true
