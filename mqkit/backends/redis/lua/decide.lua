-- Replace the options of a source, unless somebody has changed them meanwhile. KEYS: registry. ARGV: field, old, new, then
-- streams that need the group that wakes, each with its name.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
for at = 4, #ARGV, 2 do
  redis.pcall('XGROUP', 'CREATE', ARGV[at], ARGV[at + 1], '$', 'MKSTREAM')  -- it may be there
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
