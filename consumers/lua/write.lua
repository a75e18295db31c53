-- Write a batch: all of it, or nothing. Lua takes nothing back, so whatever can be refused is found before the first write.
-- Where the file that Redis starts from was cut within a batch, a part of it may be applied after all; then its token stays.
--   KEYS  places, parked, records, asked, scratch, begun; then the rows: those that were read, those that change once, those that
--         change several times, each in the order of ARGV
--   ARGV  owner, token; then in MessagePack, numbers as text:
--     places    for each partition: place ("topic:number"), epoch, next_offset before; next_offset, last_position, events, last_late
--     reads     for each table: columns, rows; a row as it was read
--     shapes    table, kind of write, how many columns the key has, columns (the key's first), columns that are added to, how:
--               bits of an integer, or "f"
--     changes   shape (counted from 1), how many rows, values: of each row those of its columns, then what is added
--     repeated  for each row, in order: shape, values
--     settled   ids ("topic:number:position") of records that are set aside no longer
--     parked    for each event to be set aside: id, its member in `parked` ("" if it is skipped), its record in JSON
--   ->    "written"
--      or "torn": a part of a script was applied before
--      or "fenced": somebody else owns a partition now
--      or "changed": a row is not as it was read
--      or "refused", why
local PLACES, PARKED, RECORDS, ASKED, SCRATCH, BEGUN, at = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], 6
local owner, token = ARGV[1], ARGV[2]
local places, reads, shapes = cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4]), cmsgpack.unpack(ARGV[5])
local changes, repeated = cmsgpack.unpack(ARGV[6]), cmsgpack.unpack(ARGV[7])
local settled, parked = cmsgpack.unpack(ARGV[8]), cmsgpack.unpack(ARGV[9])
local call = redis.call
local scratched = false

local time = call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])

-- As Postgres adds double precision; the shortest text that is read back as the same number.
local function add_float(old, more)
  old, more = tonumber(old), tonumber(more)
  local sum = old + more
  if sum ~= sum then
    return 'NaN'
  elseif sum == math.huge or sum == -math.huge then
    if math.abs(old) ~= math.huge and math.abs(more) ~= math.huge then
      return nil
    end
    return sum > 0 and 'Infinity' or '-Infinity'
  end
  for digits = 15, 17 do
    local text = string.format('%.' .. digits .. 'g', sum)
    if tonumber(text) == sum then
      return text
    end
  end
end

-- nil if the sum is out of range. Lua counts exactly to 2^53; beyond that, Redis does it, in a place of its own.
local function add(old, more, how)
  old = old or '0'
  if how == 'f' then
    return add_float(old, more)
  end
  if #old < 16 and #more < 16 then
    local sum, limit = tonumber(old) + tonumber(more), 2 ^ (how - 1)
    if sum < -limit or sum >= limit then
      return nil
    end
    return string.format('%.0f', sum)
  end
  scratched = true
  call('HSET', SCRATCH, 'n', old)
  local done = redis.pcall('HINCRBY', SCRATCH, 'n', more)
  if type(done) == 'table' then
    return nil
  end
  return call('HGET', SCRATCH, 'n')
end

local function refused(shape, key, why)
  if scratched then
    call('DEL', SCRATCH)
  end
  return {'refused', 'table ' .. shape[1] .. ' ' .. why .. ': ' .. key}
end

-- What can be in the way

if call('SCARD', BEGUN) > 0 then
  return {'torn'}
end
for _, place in ipairs(places) do
  local stored = call('HGET', PLACES, place[1])
  stored = stored and cjson.decode(stored)
  if not stored or stored.owner ~= owner or stored.epoch ~= place[2] or stored.next_offset ~= place[3] then
    return {'fenced'}
  end
  place.stored = stored
end
local settling = {}
for i, id in ipairs(settled) do
  local record = call('HGET', RECORDS, id)
  if not record then -- a repetition of what was written
    return {'fenced'}
  end
  settling[i] = cjson.decode(record).member
end
for _, read in ipairs(reads) do
  local columns = read[1]
  for _, row in ipairs(read[2]) do
    at = at + 1
    local found = call('HMGET', KEYS[at], unpack(columns))
    for i = 1, #columns do
      if (found[i] or nil) ~= row[i] then
        return {'changed'}
      end
    end
  end
end

-- What rows become: sums are put where the summands were

local first, there = at, {}
for _, change in ipairs(changes) do
  local shape, rows, values, base = shapes[change[1]], change[2], change[3], 0
  local kind, columns, adding, how = shape[2], shape[4], shape[5], shape[6]
  local count, added = #columns, #adding
  for _ = 1, rows do
    at = at + 1
    local key, found = KEYS[at], nil
    if added == 0 then
      there[at] = call('HLEN', key) > 0
    else
      found = call('HMGET', key, columns[1], unpack(adding))
      there[at] = found[1] and true
    end
    if kind == 'insert' and there[at] then
      return refused(shape, key, 'has this row already')
    end
    for i = 1, added do
      local sum = add(found[i + 1], values[base + count + i], how[i])
      if not sum then
        return refused(shape, key, adding[i] .. ' is out of range')
      end
      values[base + count + i] = sum
    end
    base = base + count + added
  end
end

local rewritten = {}
for _, row_changes in ipairs(repeated) do
  at = at + 1
  local key, row = KEYS[at], nil
  local found = call('HGETALL', key)
  for i = 1, #found, 2 do
    row = row or {}
    row[found[i]] = found[i + 1]
  end
  for _, change in ipairs(row_changes) do
    local shape, values = shapes[change[1]], change[2]
    local kind, columns, adding, how = shape[2], shape[4], shape[5], shape[6]
    if kind == 'insert' and row then
      return refused(shape, key, 'has this row already')
    elseif kind == 'delete' then
      row = nil
    elseif row or kind ~= 'update' then
      row = row or {}
      for i = 1, #columns do
        row[columns[i]] = values[i]
      end
      for i = 1, #adding do
        local sum = add(row[adding[i]], values[#columns + i], how[i])
        if not sum then
          return refused(shape, key, adding[i] .. ' is out of range')
        end
        row[adding[i]] = sum
      end
    end
  end
  local fields, n = {key}, 1
  for column, value in pairs(row or {}) do
    fields[n + 1], fields[n + 2], n = column, value, n + 2
  end
  rewritten[#rewritten + 1] = fields
end

-- From here on nothing is refused, but by the very first write: a replica, or no memory

call('SADD', BEGUN, token)
for _, place in ipairs(places) do
  local stored = place.stored
  stored.next_offset, stored.last_position, stored.events, stored.last_late = place[4], place[5], place[6], place[7]
  stored.updated_at = now
  call('HSET', PLACES, place[1], cjson.encode(stored))
end
at = first
for _, change in ipairs(changes) do
  local shape, rows, values, base = shapes[change[1]], change[2], change[3], 0
  local kind, width, columns, adding = shape[2], shape[3], shape[4], shape[5]
  local count, added, fields = #columns, #adding, {}
  for _ = 1, rows do
    at = at + 1
    local key, n = KEYS[at], 1
    if kind == 'delete' then
      call('DEL', key)
    elseif there[at] or kind ~= 'update' then
      fields[1] = key
      for i = there[at] and width + 1 or 1, count do
        if values[base + i] ~= nil then
          fields[n + 1], fields[n + 2], n = columns[i], values[base + i], n + 2
        elseif there[at] then
          call('HDEL', key, columns[i])
        end
      end
      for i = 1, added do
        fields[n + 1], fields[n + 2], n = adding[i], values[base + count + i], n + 2
      end
      if n > 1 then
        call('HSET', unpack(fields, 1, n))
      end
    end
    base = base + count + added
  end
end
for _, fields in ipairs(rewritten) do
  call('DEL', fields[1])
  if #fields > 1 then
    call('HSET', unpack(fields))
  end
end
for i, id in ipairs(settled) do
  call('HDEL', RECORDS, id)
  call('HDEL', ASKED, id)
  call('ZREM', PARKED, settling[i])
end
for _, event in ipairs(parked) do
  local id, member, record = event[1], event[2], event[3]
  call('HSET', RECORDS, id, record)
  call('HDEL', ASKED, id)
  if member ~= '' then
    call('ZADD', PARKED, 0, member)
  end
end
if scratched then
  call('DEL', SCRATCH)
end
call('SREM', BEGUN, token)
return {'written'}
