-- One small write that a consumer cannot do without: as a plain command a full server would refuse it, and never have room again.
-- KEYS: what is written to. ARGV: the command, and its arguments after the key.
return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
