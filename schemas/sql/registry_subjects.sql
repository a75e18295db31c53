-- Every subject.   ->   subject text
SELECT DISTINCT subject FROM subjects ORDER BY subject
