-- A schema and where it is listed; no row if there is no such id.
--   $1 schema_id int   ->   definition text, listed json: [{"subject": …, "version": …}, …]
SELECT s.definition,
       coalesce((SELECT json_agg(json_build_object('subject', u.subject, 'version', u.version) ORDER BY u.subject)
                   FROM subjects u WHERE u.schema_id = s.schema_id), '[]') AS listed
  FROM schemas s WHERE s.schema_id = $1
