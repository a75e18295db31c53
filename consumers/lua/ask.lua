-- Ask for something to be done with parked streams.
--   KEYS  parked, asked
--   ARGV  stream, "" for all; what
--   ->    the stream of each event
local streams = {}
for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local place, stream, position = string.match(member, '^([^%z]*)%z(.*)%z(%d+)$')
  if ARGV[1] == '' or ARGV[1] == stream then
    redis.call('HSET', KEYS[2], place .. ':' .. string.match(position, '^0*(%d+)$'), ARGV[2])
    streams[#streams + 1] = stream
  end
end
return streams
