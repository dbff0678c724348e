-- Housekeeping of one shard, a part at a time: remove claims whose session has ended, and slices that are out of the window.
-- Nothing that was delivered expires by itself: this server's clock may jump. A slice is removed once it is out of the window
-- by the member's time, which no jump moves, and by this server's clock: one that is wrong makes no member forget.
-- ARGV: cursor, the member's time, seconds from a slice's begin to the end of its window, seconds by which clocks may differ.
-- Finds the next cursor; and, as a fourth value, the slices that count: begin, number of keys, begin, ...
local cursor, now, reach, margin = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local claims = prefix .. 'claims'
local scanned = redis.call('HSCAN', claims, cursor, 'COUNT', 500)
local dead = {}
for i = 1, #scanned[2], 2 do
  local key, holder = scanned[2][i], scanned[2][i + 1]
  -- One's own ended sessions, too: their claims are of no use any more when their leases have ended.
  if known[holder] == nil then known[holder] = redis.call('EXISTS', prefix .. 'session:' .. holder) == 1 end
  if not known[holder] then dead[#dead + 1] = key end
end
-- A small hash is scanned whole, however large the count: no more than Lua's stack takes.
for from = 1, #dead, MOST do
  redis.call('HDEL', claims, unpack(dead, from, math.min(from + MOST - 1, #dead)))
end
local slices, kept, removes = redis.call('HGETALL', prefix .. 'slices'), {}, false
local over = math.min(now, tonumber(redis.call('TIME')[1])) - reach - margin
for i = 1, #slices, 2 do
  -- Without a marker: an earlier version wrote the slice, and its strings have expired.
  if tonumber(slices[i]) <= over or redis.call('EXISTS', prefix .. slices[i]) == 0 then
    redis.call('HDEL', prefix .. 'slices', slices[i])
    redis.call('DEL', prefix .. slices[i])
    redis.call('DEL', beyond(prefix .. slices[i] .. ':'))
    redis.call('HSET', prefix .. 'removing', slices[i], 0)
    removes = true
  elseif tonumber(slices[i]) + reach > now then
    kept[#kept + 1] = tonumber(slices[i])
    kept[#kept + 1] = tonumber(slices[i + 1])
  end
end
-- With the fourth removal after its latest renewal, a member's numbers are removed, too: it ended long ago.
if removes then
  local removals = redis.call('HINCRBY', prefix .. 'members', 'removals', 1)
  local members = redis.call('HGETALL', prefix .. 'members')
  for i = 1, #members, 2 do
    if removals - tonumber(members[i + 1]) > 3 then
      redis.call('HDEL', prefix .. 'members', members[i])
      redis.call('DEL', prefix .. 'member:' .. members[i])
    end
  end
end
-- Their strings: up to 2^17 a slice (`bucket_of`), a 64th of them at a time, which takes some milliseconds.
local removing = redis.call('HGETALL', prefix .. 'removing')
for i = 1, #removing, 2 do
  local slice, from = prefix .. removing[i] .. ':', tonumber(removing[i + 1])
  for first = from, from + 3 do
    local names = {}
    for second = 0, 255 do
      local name = slice .. string.char(first, second)
      names[2 * second + 1], names[2 * second + 2] = name .. 'a', name .. 'b'
    end
    redis.call('DEL', unpack(names))
  end
  if from + 4 < 256 then
    redis.call('HSET', prefix .. 'removing', removing[i], from + 4)
  else
    redis.call('HDEL', prefix .. 'removing', removing[i])
  end
end
return { scanned[1], 0, 0, kept }
