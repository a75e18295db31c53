-- Personal fields of a person that are not encrypted in some event, by field.
--   $1 event_type text   $2 schema_version int   $3 name of the subject's field text   $4 subject text   $5 personal fields text[]
--   ->   field text, events bigint
SELECT f.field, count(*) AS events
  FROM events e
 CROSS JOIN unnest($5::text[]) AS f (field)
 WHERE e.event_type = $1 AND e.schema_version = $2 AND e.event_data ->> $3 = $4
   AND e.event_data ->> f.field NOT LIKE 'enc:1:%'
 GROUP BY f.field
 ORDER BY f.field
