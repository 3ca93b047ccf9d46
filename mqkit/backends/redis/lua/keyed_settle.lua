-- Settle deliveries of an ordered source. ARGV, further, any number of
--   A number id key alone count copies...     settled together with copies, all or nothing; alone is 1 if it may have run so
--   R number id key alone count note          released in its place; count is what the group shall count, note begins with
--                                             when it is due
-- Answers 'ok', then for each 1, 0 (not ours) or an error text.
local answer, at = {'ok'}, FURTHER
while at <= #ARGV do
  local verb, number, id, name, ran_alone, count = unpack(ARGV, at, at + 5)
  number = tonumber(number)
  local key = name ~= '' and 'k' .. name or '-' .. number .. id
  local ours = redis.call('XPENDING', streams[number], group, id, id, 1, me)[1]
  if ours and lock(key) ~= me then
    -- A foreign message, or a key that is no text: the consumer names it in another way than who locked it.
    local entry = redis.call('XRANGE', streams[number], id, id)[1]
    key = entry and lock_name(number, id, entry[2]) or key
  end
  local result = ours and 1 or 0
  if verb == 'A' then
    local undo = {}
    if ours then
      for copied = 0, count - 1 do
        local failed = copy(at + 6 + copied * COPY, undo)
        if failed then
          take_back(undo)
          result = failed
          break
        end
      end
    end
    if result == 1 then
      remove(number, id)
      redis.call('HDEL', notes, number .. id)
      if ran_alone == '1' then
        redis.call('HDEL', alone, number .. id)
      end
      let_go(key, false)
    end
    at = at + 6 + count * COPY
  else
    if ours then
      redis.call('HSET', notes, number .. id, ARGV[at + 6])
      if ran_alone == '1' then
        redis.call('HDEL', alone, number .. id)
      end
      park(number, id, key, count)
      let_go(key, true)
    end
    at = at + 7
  end
  answer[#answer + 1] = result
end
return answer
