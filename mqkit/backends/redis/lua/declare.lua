-- Register a destination or source, and create its streams and groups. KEYS: registry. ARGV: field, options as JSON, then
-- any number of
--   M set hash stream        move what is due, before a new group could get what was due before it existed
--   G stream group start     a group, with its stream; one that is made again starts at the beginning
--   S stream                 a stream without a group
--   F main side n keys...    forget what is kept about messages in `main`, if it was made again here and `side` is empty
-- Answers the options found there before, or '' if it is new.
local registry, field, options = KEYS[1], ARGV[1], ARGV[2]
local known = redis.call('HGET', registry, field) or ''
local at, again = 3, {}
while at <= #ARGV do
  if ARGV[at] == 'M' then
    if known == '' then
      while move_due(ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]) == 0 do end
    end
    at = at + 4
  elseif ARGV[at] == 'S' then
    if redis.call('EXISTS', ARGV[at + 1]) == 0 then
      redis.call('XGROUP', 'CREATE', ARGV[at + 1], 'nobody/', '$', 'MKSTREAM')
      redis.call('XGROUP', 'DESTROY', ARGV[at + 1], 'nobody/')
    end
    at = at + 2
  elseif ARGV[at] == 'F' then
    local count = tonumber(ARGV[at + 3])
    if again[ARGV[at + 1]] and redis.call('XLEN', ARGV[at + 2]) == 0 then
      redis.call('DEL', unpack(ARGV, at + 4, at + 3 + count))
    end
    at = at + 4 + count
  else
    local start = known == '' and ARGV[at + 3] or '0'
    local made = redis.pcall('XGROUP', 'CREATE', ARGV[at + 1], ARGV[at + 2], start, 'MKSTREAM')
    if made.err and string.sub(made.err, 1, 9) ~= 'BUSYGROUP' then
      return made
    end
    again[ARGV[at + 1]] = again[ARGV[at + 1]] or (known ~= '' and not made.err)
    at = at + 4
  end
end
if known == '' then
  redis.call('HSET', registry, field, options)
end
return known
