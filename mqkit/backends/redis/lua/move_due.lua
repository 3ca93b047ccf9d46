-- Move messages that are due, at most a hundred, into a stream; returns milliseconds until the next one is, or -1.
local function move_due(set, hash, stream)
  local due = redis.call('ZRANGE', set, '-inf', now, 'BYSCORE', 'LIMIT', 0, 100)
  if #due > 0 then
    for _, packed in ipairs(redis.call('HMGET', hash, unpack(due))) do
      if packed then
        local id, key, head, body = unpack(cmsgpack.unpack(packed))
        redis.call('XADD', stream, 'NOMKSTREAM', '*', 'id', id, 'key', key, 'h', head, 'body', body)
      end
    end
    redis.call('ZREM', set, unpack(due))
    redis.call('HDEL', hash, unpack(due))
  end
  local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')[2]
  return first and math.max(0, tonumber(first) - now) or -1
end
