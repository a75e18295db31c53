-- What is listed under which subject.
--   ->   subject text, schema_id int
SELECT subject, schema_id FROM subjects WHERE NOT deleted
