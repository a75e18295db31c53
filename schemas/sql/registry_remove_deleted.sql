-- Remove what is deleted softly, of a subject or of all, unless a schema refers to it.
--   $1 subject text, '' = all
DELETE FROM subjects u
 WHERE ($1 = '' OR u.subject = $1) AND u.deleted
   AND NOT EXISTS (SELECT FROM schemas s
                    WHERE s.refs @> jsonb_build_array(jsonb_build_object('subject', u.subject, 'version', u.version)))
