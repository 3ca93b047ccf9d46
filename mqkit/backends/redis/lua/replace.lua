-- Remove single messages that wait in a source, each together with the publishing of its copies.
-- ARGV as in `keyed.lua`, further, for each: number of the stream ('z' if it is delayed), id (its member there), set, hash,
-- count copies... Answers for each 1, 0 (gone, or in somebody's hands) or an error text.
local answer, at = {}, FURTHER
while at <= #ARGV do
  local number, id, set, hash, count = unpack(ARGV, at, at + 4)
  local entry, pending, result = nil, nil, 1
  if number == 'z' then
    result = redis.call('HEXISTS', hash, id)
  else
    number = tonumber(number)
    entry = redis.call('XRANGE', streams[number], id, id)[1]
    pending = redis.call('XPENDING', streams[number], group, id, id, 1)[1]
    if not entry or (pending and pending[2] ~= PARKED) then
      result = 0
    end
  end
  local undo = {}
  if result == 1 then
    for copied = 0, count - 1 do
      local failed = copy(at + 5 + copied * COPY, undo)
      if failed then
        take_back(undo)
        result = failed
        break
      end
    end
  end
  if result == 1 then
    if number == 'z' then
      redis.call('ZREM', set, id)
      redis.call('HDEL', hash, id)
    else
      remove(number, id)
      if pending then
        local key = lock_name(number, id, entry[2])
        redis.call('ZREM', parked, stem(key) .. place(number, id))
        redis.call('HDEL', notes, number .. id)
        local holder, held = lock(key)
        if holder == PARKED then
          free(key)
        elseif holder then
          put(key, holder, held, parked_of(key, 1)[1] and '1' or '0')
        end
      end
    end
  end
  answer[#answer + 1] = result
  at = at + 5 + count * COPY
end
return answer
