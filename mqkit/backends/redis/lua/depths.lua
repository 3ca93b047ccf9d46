-- How much sources hold, all at one moment. ARGV, for each: main stream ('' for a topic), side stream, group, 1 if the main
-- stream is shared with other groups, set of delayed messages, set of parked ones, hash of notes.
-- Answers for each: {unread, in hand or parked, parked, of these not yet due, delayed and due, delayed}; unread is the id
-- after which to count where the server has lost count itself.
local function length(command, key)
  local reply = redis.pcall(command, key)
  return type(reply) == 'number' and reply or 0
end

local function pending_of(stream, group)
  local reply = redis.pcall('XPENDING', stream, group)
  return reply.err and 0 or reply[1]
end

local function unread_of(stream, group)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then
    return 0
  end
  for _, one in ipairs(groups) do
    if one[2] == group then
      return one[12] or one[8]
    end
  end
  return 0
end

local answer = {}
for at = 1, #ARGV, 7 do
  local main, side, group, shared, set, parked, notes = unpack(ARGV, at, at + 6)
  local unread, pending, behind, later = 0, 0, 0, 0
  if main ~= '' then
    local in_main, in_side = pending_of(main, group), pending_of(side, group)
    pending = in_main + in_side
    unread = shared == '1' and unread_of(main, group) or length('XLEN', main) - in_main
    if type(unread) == 'number' then
      unread = unread + length('XLEN', side) - in_side
    end
    behind = length('ZCARD', parked)
    if behind > 0 then
      for _, note in ipairs(redis.call('HVALS', notes)) do
        if tonumber(string.match(note, '^%d+')) > now then
          later = later + 1
        end
      end
    end
  end
  local delayed = redis.call('ZCOUNT', set, '(' .. string.format('%d', now), '+inf')
  answer[#answer + 1] = {unread, pending, behind, later, redis.call('ZCARD', set) - delayed, delayed}
end
return answer
