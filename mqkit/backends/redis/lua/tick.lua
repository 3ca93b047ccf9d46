-- Time passes for an unordered source. KEYS: owners. ARGV: me, lease, group, hash of those that ran alone, room, 1 to look
-- for dead consumers, then how many streams, the streams, and for each set of delayed messages: set hash stream.
-- Answers 'ok', milliseconds until the next message is due (-1: none), and what was taken over:
-- {number of the stream, id, count of hand-outs, fields, how often it died alone}.
local group, alone, room, look, streams = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7])
local next_due, taken = -1, {}
for at = 8 + streams, #ARGV, 3 do
  local due = move_due(ARGV[at], ARGV[at + 1], ARGV[at + 2])
  if due >= 0 and (next_due < 0 or due < next_due) then
    next_due = due
  end
end
if look == '1' then
  for number = 1, streams do
    local stream = ARGV[7 + number]
    for _, name in ipairs(dead_owners(stream, group)) do
      if #taken < room then
        local ids, counts = {}, {}
        for i, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', math.min(1000, room - #taken), name)) do
          ids[i] = pending[1]
          counts[pending[1]] = pending[4] + 1
        end
        for _, entry in ipairs(redis.call('XCLAIM', stream, group, me, 0, unpack(ids))) do
          local died_alone = redis.call('HGET', alone, number .. entry[1]) or 0
          taken[#taken + 1] = {number, entry[1], counts[entry[1]], entry[2], tonumber(died_alone)}
        end
      end
    end
  end
  forget_the_long_dead()
end
return {'ok', next_due, taken}
