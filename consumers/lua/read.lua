-- Read rows.
--   KEYS  the rows
--   ARGV  columns
--   ->    for each row, the values of its columns
local rows = {}
for i, key in ipairs(KEYS) do
  rows[i] = redis.call('HMGET', key, unpack(ARGV))
end
return rows
