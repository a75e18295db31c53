-- The events in a part of the log that pass a filter, the last first. The regular expressions are matched here: by Postgres, which does not
-- backtrack without end. A stream's name is its id without the prefix that stands for names of another form.
--   $1 after position bigint   $2 up to and including position bigint
--   $3 regular expression of event types, $4 prefixes of event types, $5, $6 the same of stream names; NULL = not asked for
--   $7 limit bigint   $8 bytes at most, but one event at least   ->   total: how many there are up to the limit, whatever their bytes
SELECT global_position, id, stream_id, event_type, version, schema_version, metadata::text, tags, payload, created_at, total
  FROM (SELECT *, sum(octet_length(payload) + pg_column_size(metadata)) OVER (ORDER BY global_position DESC) AS bytes,
               row_number() OVER (ORDER BY global_position DESC) AS n, count(*) OVER () AS total
          FROM (SELECT *
                  FROM events
                 WHERE global_position > $1 AND global_position <= $2
                   AND ($3::text IS NULL OR event_type ~ $3)
                   AND ($4::text[] IS NULL OR event_type ^@ ANY ($4))
                   AND ($5::text IS NULL OR CASE WHEN stream_type = 'kurrent' THEN substr(stream_id, 9) ELSE stream_id END ~ $5)
                   AND ($6::text[] IS NULL OR CASE WHEN stream_type = 'kurrent' THEN substr(stream_id, 9) ELSE stream_id END ^@ ANY ($6))
                 ORDER BY global_position DESC
                 LIMIT $7) AS matching) AS following
 WHERE bytes <= $8 OR n = 1
 ORDER BY global_position DESC
