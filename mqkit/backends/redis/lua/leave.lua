-- A consumer goes, politely. KEYS: owners. ARGV: me, lease, group, streams. What it still holds is taken over at once.
local group, held = ARGV[3], 0
for at = 4, #ARGV do
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', ARGV[at], group)) do
    if consumer[2] == me then
      held = held + consumer[4]
      if consumer[4] == 0 then
        redis.call('XGROUP', 'DELCONSUMER', ARGV[at], group, me)
      end
    end
  end
end
if held == 0 then
  redis.call('ZREM', owners, me)
else
  redis.call('ZADD', owners, -now, me)
end
return {'ok', held}
