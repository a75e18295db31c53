-- Delete versions softly: only who asks for deleted ones sees them.
--   $1 subject text   $2 versions int[]
UPDATE subjects SET deleted = true WHERE subject = $1 AND version = ANY ($2)
