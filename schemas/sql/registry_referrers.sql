-- Who refers to versions of a subject.
--   $1 subject text   $2 versions int[]   $3 show_deleted bool (referrers that are deleted, too)   ->   schema_id int, subject text
SELECT DISTINCT u.schema_id, u.subject
  FROM unnest($2::int[]) AS wanted (version)
  JOIN schemas s ON s.refs @> jsonb_build_array(jsonb_build_object('subject', $1::text, 'version', wanted.version))
  JOIN subjects u ON u.schema_id = s.schema_id AND ($3 OR NOT u.deleted)
 ORDER BY u.schema_id, u.subject
