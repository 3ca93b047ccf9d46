-- What the scripts of an ordered source share. A lock stands for a key of which anything is in somebody's hands or parked:
-- `holder|how many it holds|1 if more is parked`. Only who reads the stream can lock, so reading and locking is one step.
-- What belongs to a locked key is parked under the consumer `~`, which never dies.
-- KEYS: owners, locks, parked, ready, notes, alone. ARGV: me, lease, group, 1 to delete what is settled, how many streams
-- (one or two), the streams; further arguments from ARGV[FURTHER].
local locks, parked, ready, notes, alone = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local group, deletes, streams = ARGV[3], ARGV[4], {}
for number = 1, tonumber(ARGV[5]) do
  streams[number] = ARGV[5 + number]
end
local FURTHER = 6 + #streams
local PARKED = '~'

-- Entry ids as text of one width, so that a set sorts them; the last digit is the number of the stream.
local function place(number, id)
  local time, count = string.match(id, '(%d+)-(%d+)')
  return string.rep('0', 20 - #time) .. time .. '-' .. string.rep('0', 20 - #count) .. count .. number
end

local function entry_at(member)
  local time, count, number = string.match(string.sub(member, -42), '^0*(%d+)%-(%d+)(%d)$')
  count = string.gsub(count, '^0+', '')
  return tonumber(number), time .. '-' .. (count == '' and '0' or count)
end

-- The length keeps a key from being taken for the beginning of another one.
local function stem(key)
  return #key .. ':' .. key
end

local function lock_name(number, id, fields)
  for i = 1, #fields, 2 do
    if fields[i] == 'key' and fields[i + 1] ~= '' then
      return 'k' .. fields[i + 1]
    end
  end
  return '-' .. number .. id
end

local function lock(key)
  local holder, held, more = string.match(redis.call('HGET', locks, key) or '', '^(.-)|(%d+)|(%d)$')
  return holder, tonumber(held), more
end

local function put(key, holder, held, more)
  redis.call('HSET', locks, key, holder .. '|' .. held .. '|' .. more)
end

local function parked_of(key, count)
  return redis.call('ZRANGE', parked, '[' .. stem(key), '(' .. stem(key) .. ':', 'BYLEX', 'LIMIT', 0, count)
end

local function due_of(number, id)
  return tonumber(string.match(redis.call('HGET', notes, number .. id) or '', '^%d+') or 0)
end

-- Nobody holds the key: its first parked message is next, when it is due; without one the lock goes.
local function free(key)
  local first = parked_of(key, 1)[1]
  if not first then
    redis.call('HDEL', locks, key)
    redis.call('ZREM', ready, key)
    return
  end
  put(key, PARKED, 0, '1')
  redis.call('ZADD', ready, math.max(now, due_of(entry_at(first))), key)
end

local function let_go(key, more)
  local holder, held, had_more = lock(key)
  if holder == me and held > 1 then
    put(key, me, held - 1, (more or had_more == '1') and '1' or '0')
  elseif holder == me or not holder then
    free(key)
  elseif more then
    put(key, holder, held, '1')
  end
end

local function park(number, id, key, count)
  redis.call('ZADD', parked, 0, stem(key) .. place(number, id))
  if count then
    redis.call('XCLAIM', streams[number], group, PARKED, 0, id, 'RETRYCOUNT', count, 'JUSTID')
  else
    redis.call('XCLAIM', streams[number], group, PARKED, 0, id, 'JUSTID')
  end
end

local function remove(number, id)
  redis.call('XACK', streams[number], group, id)
  if deletes == '1' or number == 2 then
    redis.call('XDEL', streams[number], id)
  end
end

-- Put what was just read behind its key, or leave it to the caller (true).
local function admit(number, entry, taker)
  local id, key = entry[1], lock_name(number, entry[1], entry[2])
  local holder, held, more = lock(key)
  if taker and (not holder or (holder == taker and more == '0')) then
    put(key, taker, (held or 0) + 1, '0')
    return true
  end
  park(number, id, key, 0)
  if holder then
    put(key, holder, held, '1')
  else
    free(key)
  end
  return false
end

local function read(reader, count)
  local command = {'XREADGROUP', 'GROUP', group, reader, 'COUNT', count, 'STREAMS'}
  for _, stream in ipairs(streams) do
    command[#command + 1] = stream
  end
  for _ = 1, #streams do
    command[#command + 1] = '>'
  end
  local entries = {}
  for _, of_stream in ipairs(redis.call(unpack(command)) or {}) do
    local number = of_stream[1] == streams[1] and 1 or 2
    for _, entry in ipairs(of_stream[2]) do
      entries[#entries + 1] = {number, entry}
    end
  end
  return entries
end
