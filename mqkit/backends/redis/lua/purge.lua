-- Remove what waits in a source, a thousand at a time. Not fenced: it touches nothing that is in somebody's hands.
-- ARGV as in `keyed.lua`, further: set and hash of what is delayed. Answers how many were removed.
local removed = 0
for number, stream in ipairs(streams) do
  local reply = redis.call('XREADGROUP', 'GROUP', group, PARKED, 'COUNT', 1000, 'NOACK', 'STREAMS', stream, '>')
  for _, entry in ipairs(reply and reply[1][2] or {}) do
    if deletes == '1' or number == 2 then
      redis.call('XDEL', stream, entry[1])
    end
    removed = removed + 1
  end
end
for _, member in ipairs(redis.call('ZRANGE', parked, 0, 999)) do
  local number, id = entry_at(member)
  local key = string.match(string.sub(member, 1, -43), '^%d+:(.*)$')
  remove(number, id)
  redis.call('HDEL', notes, number .. id)
  redis.call('HDEL', alone, number .. id)
  redis.call('ZREM', parked, member)
  local holder, held = lock(key)
  if holder == PARKED then
    free(key)
  elseif holder then
    put(key, holder, held, parked_of(key, 1)[1] and '1' or '0')
  end
  removed = removed + 1
end
local set, hash = ARGV[FURTHER], ARGV[FURTHER + 1]
local delayed = redis.call('ZRANGE', set, 0, 999)
if #delayed > 0 then
  redis.call('ZREM', set, unpack(delayed))
  redis.call('HDEL', hash, unpack(delayed))
end
return removed + #delayed
