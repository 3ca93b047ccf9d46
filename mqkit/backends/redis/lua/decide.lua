-- Replace the options of a source, unless somebody has changed them meanwhile. KEYS: registry. ARGV: field, old, new.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
