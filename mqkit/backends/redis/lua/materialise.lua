-- Read what a group of a topic has not read, so that single messages can be removed for it alone: into its side stream, or,
-- where keys are ordered, behind their keys. ARGV as in `keyed.lua`, further: 1 if ordered. Answers how many were read.
local ordered = ARGV[FURTHER] == '1'
if ordered then
  local entries = read(PARKED, 500)
  for _, found in ipairs(entries) do
    admit(found[1], found[2], nil)
  end
  return #entries
end
local reply = redis.call('XREADGROUP', 'GROUP', group, PARKED, 'COUNT', 500, 'NOACK', 'STREAMS', streams[1], '>')
local entries = reply and reply[1][2] or {}
for _, entry in ipairs(entries) do
  redis.call('XADD', streams[2], 'NOMKSTREAM', '*', unpack(entry[2]))
end
return #entries
