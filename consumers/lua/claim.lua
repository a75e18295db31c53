-- Become the owner of partitions: raise their epochs, which fences an older owner. Partitions of Kafka begin where the log
-- (topic "") was read to, and whoever reads that is fenced, too.
--   KEYS  places, parked, sweeping, begun
--   ARGV  owner; then for each partition: place ("topic:number"), the id of its topic
--   ->    "claimed", {for each partition: place, topic id at first sight, epoch, next_offset, last_position, events, last_late,
--         built_to, {streams of which events are set aside}}
--      or "torn": a part of a script was applied
--      or "sweeping", token: a reset is not at its end
--      or "on kafka": the projection has gone on from Kafka, and can't be read from the log
--      or "parked from the log"
if redis.call('SCARD', KEYS[4]) > 0 then
  return {'torn'}
end
local sweeping = redis.call('GET', KEYS[3])
if sweeping then
  return {'sweeping', sweeping}
end

local places, on_kafka, from_log, claimed = {}, false, false, {}
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
  places[stored[i]] = cjson.decode(stored[i + 1])
  on_kafka = on_kafka or (stored[i] ~= ':0' and places[stored[i]].next_offset ~= '0')
end
for i = 2, #ARGV, 2 do
  from_log = from_log or ARGV[i] == ':0'
end
if from_log and on_kafka then
  return {'on kafka'}
end
if not from_log and redis.call('ZLEXCOUNT', KEYS[2], '[:0\0', '(:0\1') > 0 then
  return {'parked from the log'}
end

local time = redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])

local function take(id)
  places[id].epoch = string.format('%.0f', places[id].epoch + 1)
  places[id].owner = ARGV[1]
  redis.call('HSET', KEYS[1], id, cjson.encode(places[id]))
end

local built_to = '0'
if not from_log and places[':0'] then
  built_to = places[':0'].next_offset
  take(':0')
end
for i = 2, #ARGV, 2 do
  local id, topic_id = ARGV[i], ARGV[i + 1]
  if not places[id] then
    places[id] = {epoch = '0', next_offset = '0', last_position = '0', events = '0', last_late = '0', built_to = built_to}
  end
  local place = places[id]
  place.topic_id = place.topic_id or topic_id
  place.updated_at = now
  take(id)
  local streams, seen = {}, {}
  for _, member in ipairs(redis.call('ZRANGEBYLEX', KEYS[2], '[' .. id .. '\0', '(' .. id .. '\1')) do
    local stream = string.match(member, '^[^%z]*%z(.*)%z%d+$')
    if not seen[stream] then
      seen[stream] = true
      streams[#streams + 1] = stream
    end
  end
  claimed[#claimed + 1] = {
    id, place.topic_id, place.epoch, place.next_offset, place.last_position, place.events, place.last_late, place.built_to, streams
  }
end
return {'claimed', claimed}
