-- Add one message, described by twelve arguments from ARGV[at]:
--   registry key, field that must be registered there (or ''), stream or sorted set, hash ('' for a stream),
--   milliseconds until it is due, 'topic' if the stream may be missing (or ''), then id, key, h, body, and the key that
--   remembers its id ('' for none) with for how many milliseconds
-- Returns an error text, or nothing: it is there, perhaps from before. What was done is noted in `undo`, because a script
-- that fails is not rolled back.
local COPY = 12

local function copy(at, undo)
  local registry, field, where, hash, after, kind = unpack(ARGV, at, at + 5)
  local id, key, head, body, seen, window = unpack(ARGV, at + 6, at + 11)
  if seen ~= '' then
    local remembered = redis.pcall('SET', seen, '', 'NX', 'PX', window)
    if not remembered then
      return nil
    elseif remembered.err then
      return remembered.err
    end
    undo[#undo + 1] = {'DEL', seen}
  end
  if hash ~= '' then
    if field ~= '' and redis.call('HEXISTS', registry, field) == 0 then
      return 'NOSTREAM ' .. field
    end
    local number = redis.pcall('HINCRBY', hash, '#', 1)
    if type(number) == 'table' then
      return number.err
    end
    -- As wide as it may become, because messages that are due at the same moment are sorted by it.
    local member = string.format('%014x', number)
    local added = redis.pcall('ZADD', where, now + tonumber(after), member)
    if type(added) == 'table' then
      return added.err
    end
    redis.call('HSET', hash, member, cmsgpack.pack({id, key, head, body}))
    undo[#undo + 1] = {'ZREM', where, member}
    undo[#undo + 1] = {'HDEL', hash, member}
    return nil
  end
  local entry = redis.pcall('XADD', where, 'NOMKSTREAM', '*', 'id', id, 'key', key, 'h', head, 'body', body)
  if type(entry) == 'table' and entry.err then
    return entry.err
  end
  if not entry then
    -- A topic without groups has no stream: it takes the message, which reaches nobody.
    if kind == 'topic' and redis.call('HEXISTS', registry, field) == 1 then
      return nil
    end
    return 'NOSTREAM ' .. (field ~= '' and field or where)
  end
  undo[#undo + 1] = {'XDEL', where, entry}
  return nil
end

local function take_back(undo)
  for i = #undo, 1, -1 do
    redis.call(unpack(undo[i]))
  end
end
