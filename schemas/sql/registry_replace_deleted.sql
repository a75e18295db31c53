-- Remove deleted versions of a subject whose schema is listed again, unless a schema refers to them.
--   $1 subject text   $2 schema_id int
DELETE FROM subjects u
 WHERE u.subject = $1 AND u.schema_id = $2 AND u.deleted
   AND NOT EXISTS (SELECT FROM schemas s
                    WHERE s.refs @> jsonb_build_array(jsonb_build_object('subject', u.subject, 'version', u.version)))
