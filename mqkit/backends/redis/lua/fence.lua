-- First in every script of a consumer. Its row in the set of owners says until when all it holds is its own. Who finds no
-- row, or one declared dead, holds nothing any more and may change nothing.
-- The fraction of a lease says over which of its connections a consumer speaks, one after the other. What was sent over an
-- earlier one and arrives after it has gone on is refused: it may be about a hand-out that is over. Who is not refused is
-- renewed by being here.
local owners, me, lease = KEYS[1], ARGV[1], tonumber(ARGV[2])
local row = redis.call('ZSCORE', owners, me)
if not row or tonumber(row) <= 0 then
  return {'stale'}
end
if lease % 1 < tonumber(row) % 1 then
  return {'stale'}
end
redis.call('ZADD', owners, now + lease, me)
