-- Names of consumers of a group whose lease is over, with how many entries they hold; they are declared dead on the way.
-- A consumer without a row is a foreign client, or lost its row with the data: it is dead after idling for a lease.
local function dead_owners(stream, group)
  local dead = {}
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local name, pending, idle = consumer[2], consumer[4], consumer[6]
    if name ~= me and name ~= '~' then
      local until_ = tonumber(redis.call('ZSCORE', owners, name) or nil)
      if (until_ and until_ < now) or (not until_ and idle > lease) then
        if until_ and until_ > 0 then
          redis.call('ZADD', owners, -now, name)
        end
        -- A group forgets what a consumer holds together with the consumer, so only an empty one may be removed.
        if pending > 0 then
          dead[#dead + 1] = name
        elseif until_ or idle > 10 * lease then
          redis.call('XGROUP', 'DELCONSUMER', stream, group, name)
        end
      end
    end
  end
  return dead
end

-- Declared dead, or never: a consumer that died before it read anything is no member of a group, where it would be noticed.
local function forget_the_long_dead()
  redis.call('ZREMRANGEBYSCORE', owners, -(now - 100 * lease), now - 100 * lease)
end
