-- The statements that give another relation the rights that roles have on one.
--   $1 schema text   $2 name text   $3 schema of the other text   $4 name of the other text   ->   statement text
SELECT format('GRANT %s ON %I.%I TO %s%s', acl.privilege_type, $3::text, $4::text,
              CASE acl.grantee WHEN 0 THEN 'PUBLIC' ELSE acl.grantee::regrole::text END,
              CASE WHEN acl.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) AS statement
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace, aclexplode(c.relacl) AS acl
 WHERE n.nspname = $1 AND c.relname = $2 AND acl.grantee <> c.relowner
