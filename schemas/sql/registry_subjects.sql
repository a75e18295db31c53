-- Subjects whose names begin with a text, sorted.
--   $1 prefix text   $2 show_deleted bool (those without a version that is not deleted, too)   $3 only_deleted bool (only those)
--   ->   subject text
SELECT subject FROM subjects
 WHERE starts_with(subject, $1)
 GROUP BY subject
HAVING CASE WHEN $3 THEN bool_and(deleted) ELSE $2 OR NOT bool_and(deleted) END
 ORDER BY subject COLLATE "C"
