-- After a connection broke: everything this consumer holds, as the server has it, so that nothing in an answer that never
-- arrived is forgotten. KEYS: owners. ARGV: me, lease, group, hash of those that ran alone, hash of
-- notes, streams. Answers 'ok' and entries as `keyed_take` does.
local group, alone, notes, taken = ARGV[3], ARGV[4], ARGV[5], {}
for number = 1, #ARGV - 5 do
  local stream = ARGV[5 + number]
  for _, pending in ipairs(redis.call('XPENDING', stream, group, '-', '+', 100000, me)) do
    local entry = redis.call('XRANGE', stream, pending[1], pending[1])[1]
    if entry then
      local died_alone = redis.call('HGET', alone, number .. pending[1]) or 0
      local note = redis.call('HGET', notes, number .. pending[1]) or ''
      taken[#taken + 1] = {number, pending[1], pending[4], entry[2], tonumber(died_alone), note}
    end
  end
end
return {'ok', taken}
