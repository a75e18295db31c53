-- Versions of the subjects whose names begin with a text.
--   $1 prefix text   $2 show_deleted bool   $3 latest_only bool   $4 rows to skip bigint   $5 rows at most bigint, NULL = all
--   ->   as registry_versions
SELECT u.subject, u.version, u.schema_id, s.definition, s.refs::text, u.deleted
  FROM subjects u JOIN schemas s USING (schema_id)
 WHERE starts_with(u.subject, $1) AND ($2 OR NOT u.deleted)
   AND (NOT $3 OR u.version = (SELECT max(l.version) FROM subjects l WHERE l.subject = u.subject AND ($2 OR NOT l.deleted)))
 ORDER BY u.subject COLLATE "C", u.version OFFSET $4 LIMIT $5
