-- Delayed and deduplicated messages. KEYS: owners (names the node). ARGV: for each message the key that remembers its id
-- ('' for none) and for how many milliseconds, then the message as `copy` takes it.
-- Answers one text for each: 'ok', 'dup' (it is there already), or an error.
local answers, at = {}, 1
while at <= #ARGV do
  local undo, answer = {}, 'ok'
  local seen, window = ARGV[at], ARGV[at + 1]
  if seen ~= '' then
    if redis.call('SET', seen, '', 'NX', 'PX', window) then
      undo[1] = {'DEL', seen}
    else
      answer = 'dup'
    end
  end
  if answer == 'ok' then
    local failed = copy(at + 2, undo)
    if failed then
      take_back(undo)
      answer = failed
    end
  end
  answers[#answers + 1] = answer
  at = at + 2 + COPY
end
return answers
