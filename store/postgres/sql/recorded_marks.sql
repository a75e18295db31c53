-- Which outcomes of reactions are recorded already. OFFSET 0: each mark is looked for by index, and no table is hashed as a whole.
--   $1 marks uuid[]   ->   mark of each that is
SELECT asked.mark FROM unnest($1::uuid[]) AS asked (mark)
 WHERE EXISTS (SELECT FROM events e WHERE e.id = asked.mark OFFSET 0)
    OR EXISTS (SELECT FROM reaction_marks m WHERE m.mark = asked.mark OFFSET 0)
