-- Give calls of a quota that members share: a number of them in any 60 seconds, by this server's clock.
-- A call is counted in the second in which it begins at the latest. All that can begin less than 60 seconds before it
-- is counted with it, so no 60 seconds have more calls than the quota, whenever each of them begins.
-- ARGV: name of the quota, calls wanted, calls a minute, seconds within which they begin.
-- Finds nothing; and, as further values, how many are given; milliseconds until one is free, if none is given.
local wanted, maximum, seconds = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local name = prefix .. 'calls:' .. ARGV[5]
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local used, oldest = 0, nil
local counted = redis.call('HGETALL', name)
for i = 1, #counted, 2 do
  local second = tonumber(counted[i])
  -- Too far ahead: the clock was set back since.
  if second < math.floor(now) - 60 or second > now + 15 then
    redis.call('HDEL', name, counted[i])
  else
    used = used + tonumber(counted[i + 1])
    if not oldest or second < oldest then oldest = second end
  end
end
local given, wait = math.max(0, math.min(wanted, maximum - used)), 0
if given > 0 then
  redis.call('HINCRBY', name, string.format('%d', math.floor(now + seconds)), given)
  redis.call('EXPIRE', name, 120)
else
  wait = math.ceil(1000 * (oldest + 61 - now))
end
return { '', 0, 0, given, wait }
