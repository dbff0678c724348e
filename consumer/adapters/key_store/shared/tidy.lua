-- Housekeeping of one shard, a part at a time: remove claims whose session has ended, and slices whose strings have expired.
-- No member's clock decides what is removed: a wrong one would make all members forget.
-- ARGV: cursor, the begin of the oldest slice that counts.
-- Finds the next cursor; and, as a fourth value, the slices that count: begin, number of keys, begin, ...
local cursor, oldest = ARGV[4], tonumber(ARGV[5])
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
local slices, kept = redis.call('HGETALL', prefix .. 'slices'), {}
for i = 1, #slices, 2 do
  if redis.call('EXISTS', prefix .. slices[i]) == 0 then
    redis.call('HDEL', prefix .. 'slices', slices[i])
  elseif tonumber(slices[i]) >= oldest then
    kept[#kept + 1] = tonumber(slices[i])
    kept[#kept + 1] = tonumber(slices[i + 1])
  end
end
return { scanned[1], 0, 0, kept }
