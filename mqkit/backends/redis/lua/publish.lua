-- Delayed and deduplicated messages. KEYS: owners (names the node). ARGV: the messages, each as `copy` takes it.
-- Answers one text for each: 'ok', or an error.
local answers = {}
for at = 1, #ARGV, COPY do
  local undo = {}
  local failed = copy(at, undo)
  if failed then
    take_back(undo)
  end
  answers[#answers + 1] = failed or 'ok'
end
return answers
