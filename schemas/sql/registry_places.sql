-- The schemas that stand at some places, each a subject and a version. What is not there has no row.
--   $1 subjects text[]   $2 versions int[], same length   ->   as registry_versions
SELECT u.subject, u.version, u.schema_id, s.definition, s.refs::text, u.deleted
  FROM unnest($1::text[], $2::int[]) AS wanted (subject, version)
  JOIN subjects u USING (subject, version) JOIN schemas s USING (schema_id)
