-- Forget messages of a topic that every group has settled and that are older than it retains.
-- KEYS: the topic's stream. ARGV: milliseconds it retains, 0 for none.
local function parts(id)
  return string.match(id, '(%d+)-(%d+)')
end

-- Numbers of this length do not fit a Lua number exactly, so they are compared as text.
local function less(a, b)
  local a_time, a_number = parts(a)
  local b_time, b_number = parts(b)
  if a_time == b_time then
    a_time, b_time = a_number, b_number
  end
  if #a_time ~= #b_time then
    return #a_time < #b_time
  end
  return a_time < b_time
end

local lowest
local function keep_from(id)
  if not lowest or less(id, lowest) then
    lowest = id
  end
end

local stream, retain = KEYS[1], tonumber(ARGV[1])
if redis.call('EXISTS', stream) == 0 then
  return 0
end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local name, pending, delivered = group[2], group[6], group[8]
  if string.sub(name, 1, 5) ~= 'wake/' then
    if pending > 0 then
      keep_from(redis.call('XPENDING', stream, name)[2])
    else
      local at, number = parts(delivered)
      keep_from(at .. '-' .. string.format('%d', number + 1))
    end
  end
end
if retain > 0 then
  keep_from(string.format('%d-0', math.max(0, now - retain)))
end
-- Exactly: an approximate trim keeps whole nodes, and one by length would remove what a slow group has not read.
return lowest and redis.call('XTRIM', stream, 'MINID', '=', lowest) or 0
