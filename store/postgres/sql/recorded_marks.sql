-- Which outcomes of reactions are recorded already.
--   $1 marks uuid[]   ->   mark of each that is
SELECT asked.mark FROM unnest($1::uuid[]) AS asked (mark)
 WHERE EXISTS (SELECT FROM events e WHERE e.id = asked.mark) OR EXISTS (SELECT FROM reaction_marks m WHERE m.mark = asked.mark)
