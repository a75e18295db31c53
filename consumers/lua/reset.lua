-- Let a projection begin anew: who runs it is fenced by the epoch. Its rows have to be swept before somebody can claim it again.
--   KEYS  places, parked, records, asked, tables, sweeping, begun
--   ARGV  token of the sweep
--   ->    in how many partitions
local places = redis.call('HGETALL', KEYS[1])
redis.call('SADD', KEYS[7], ARGV[1])
redis.call('SET', KEYS[6], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
local time = redis.call('TIME')
for i = 1, #places, 2 do
  redis.call('HSET', KEYS[1], places[i], cjson.encode({
    epoch = string.format('%.0f', cjson.decode(places[i + 1]).epoch + 1), owner = '',
    next_offset = '0', last_position = '0', events = '0', last_late = '0', built_to = '0',
    updated_at = time[1] .. '.' .. string.format('%06d', time[2])
  }))
end
redis.call('DEL', KEYS[7])
return #places / 2
