-- Take messages of an ordered source. ARGV, further: room, how many may be parked before reading stops.
-- Answers 'ok', milliseconds until the next parked message is due (-1: none), and entries:
-- {number of the stream, id, count of hand-outs, fields, how often it died alone, note}.
local RUN = 32  -- most messages of one key that are taken at a time, for others should have some
local room, most_parked = tonumber(ARGV[FURTHER]), tonumber(ARGV[FURTHER + 1])
local taken = {}

local function take_parked(number, id)
  local pending = redis.call('XPENDING', streams[number], group, id, id, 1)[1]
  local entry = redis.call('XCLAIM', streams[number], group, me, 0, id)[1]
  if not entry then
    redis.call('HDEL', notes, number .. id)
    return false  -- deleted by somebody else
  end
  local field = number .. id
  local died_alone = redis.call('HGET', alone, field) or 0
  local note = redis.call('HGET', notes, field) or ''
  taken[#taken + 1] = {number, id, (pending and pending[4] or 0) + 1, entry[2], tonumber(died_alone), note}
  return true
end

while #taken < room do
  local key = redis.call('ZRANGE', ready, '-inf', now, 'BYSCORE', 'LIMIT', 0, 1)[1]
  if not key then
    break
  end
  redis.call('ZREM', ready, key)
  local limit = math.min(RUN, room - #taken)
  local members = parked_of(key, limit + 1)
  local held, more = 0, #members > limit
  for i = 1, math.min(limit, #members) do
    local number, id = entry_at(members[i])
    if due_of(number, id) > now then
      more = true
      break
    end
    redis.call('ZREM', parked, members[i])
    if take_parked(number, id) then
      held = held + 1
    end
  end
  if held > 0 then
    put(key, me, held, more and '1' or '0')
  else
    free(key)
  end
end

for _ = 1, 4 do
  if #taken >= room or redis.call('ZCARD', parked) > most_parked then
    break
  end
  local entries = read(me, room - #taken)
  if #entries == 0 then
    break
  end
  for _, found in ipairs(entries) do
    local number, entry = found[1], found[2]
    if admit(number, entry, me) then
      taken[#taken + 1] = {number, entry[1], 1, entry[2], 0, ''}
    end
  end
end

if #taken == 0 then
  -- Everything there was is seen: nobody needs to be woken for it.
  for _, stream in ipairs(streams) do
    redis.call('XGROUP', 'SETID', stream, 'wake/' .. group, '$')
  end
end
local first = redis.call('ZRANGE', ready, 0, 0, 'WITHSCORES')[2]
return {'ok', first and math.max(0, tonumber(first) - now) or -1, taken}
