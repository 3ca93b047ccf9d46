-- What dead consumers of an ordered source held goes back in front of its key. Its count stays, so its next hand-out has
-- one more than this one.
for number, stream in ipairs(streams) do
  for _, name in ipairs(dead_owners(stream, group)) do
    local freed = {}
    -- All of it at once: a later message of a key must not be read while an earlier one is with the dead.
    repeat
      local pending = redis.call('XPENDING', stream, group, '-', '+', 1000, name)
      for _, one in ipairs(pending) do
        local entry = redis.call('XRANGE', stream, one[1], one[1])[1]
        if entry then
          local key = lock_name(number, entry[1], entry[2])
          park(number, entry[1], key)
          local holder, held, _ = lock(key)
          if not holder or holder == name then
            freed[key] = true
          else
            put(key, holder, held, '1')
          end
        else
          redis.call('XACK', stream, group, one[1])
        end
      end
    until #pending == 0
    for key in pairs(freed) do
      free(key)
    end
  end
end

-- Who holds no message locks no key: somebody deleted the messages, or their stream. Only what waits needs to know.
local function holds_nothing(name)
  for _, stream in ipairs(streams) do
    if #redis.call('XPENDING', stream, group, '-', '+', 1, name) > 0 then
      return false
    end
  end
  return true
end

if redis.call('EXISTS', parked) == 1 then
  local all, empty = redis.call('HGETALL', locks), {}
  for i = 1, #all, 2 do
    local holder = string.match(all[i + 1], '^(.-)|')
    if holder ~= PARKED then
      if empty[holder] == nil then
        empty[holder] = holds_nothing(holder)
      end
      if empty[holder] then
        free(all[i])
      end
    end
  end
end
forget_the_long_dead()
return {'ok'}
