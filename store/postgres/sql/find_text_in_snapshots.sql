-- Count the snapshots that contain one of some texts.
--   $1 texts text[]   ->   bigint
SELECT count(*) FROM snapshots s WHERE EXISTS (SELECT FROM unnest($1::text[]) AS v WHERE strpos(s.snapshot_data::text, v) > 0)
