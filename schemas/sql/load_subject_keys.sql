-- The keys of subjects; NULL = erased. Unknown subjects have no row.
--   $1 subjects text[]   ->   subject text, key bytea
SELECT subject, key FROM subject_keys WHERE subject = ANY ($1)
