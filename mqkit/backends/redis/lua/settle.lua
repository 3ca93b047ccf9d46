-- Settle deliveries of an unordered source. KEYS: owners. ARGV: me, lease, then any number of
--   A stream group delete count ids...                               settled; delete is 1 where nobody else needs them
--   C stream group delete id alone field count copies...             settled together with copies, all or nothing
-- `alone` is a hash and `field` its field for deliveries that ran alone, or both ''.
-- Answers 'ok', then one value per operation: for A how many were ours, for C 1, 0 (not ours) or an error text.
local answer, at = {'ok'}, 3
while at <= #ARGV do
  local verb, stream, group, delete = unpack(ARGV, at, at + 3)
  if verb == 'A' then
    local count = tonumber(ARGV[at + 4])
    local first, last = at + 5, at + 4 + count
    answer[#answer + 1] = redis.call('XACK', stream, group, unpack(ARGV, first, last))
    if delete == '1' then
      redis.call('XDEL', stream, unpack(ARGV, first, last))
    end
    at = last + 1
  else
    local id, alone, field, count = unpack(ARGV, at + 4, at + 7)
    local result, undo = 0, {}
    if redis.call('XPENDING', stream, group, id, id, 1, me)[1] then
      result = 1
      for number = 0, count - 1 do
        local failed = copy(at + 8 + number * COPY, undo)
        if failed then
          take_back(undo)
          result = failed
          break
        end
      end
    end
    if result == 1 then
      -- Last of all: nothing above can be repeated once the message is gone.
      redis.call('XACK', stream, group, id)
      if delete == '1' then
        redis.call('XDEL', stream, id)
      end
      if alone ~= '' then
        redis.call('HDEL', alone, field)
      end
    end
    answer[#answer + 1] = result
    at = at + 8 + count * COPY
  end
end
return answer
