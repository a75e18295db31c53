-- Whether a filter lets an event pass: as sql/filtered_forwards.sql does.
--   $1 event type text   $2 stream name text   $3 … $6 the filter
SELECT ($3::text IS NULL OR $1::text ~ $3) AND ($4::text[] IS NULL OR $1 ^@ ANY ($4))
   AND ($5::text IS NULL OR $2::text ~ $5) AND ($6::text[] IS NULL OR $2 ^@ ANY ($6))
