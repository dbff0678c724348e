-- Housekeeping of one shard, a part at a time: remove claims whose session has ended, and keys that are out of the
-- window. Nothing that was delivered expires by itself: this server's clock may jump. A key is removed once it is out
-- of the window by the member's time, which no jump moves, and by this server's clock: one that is wrong makes no
-- member forget. ARGV: cursor, the member's time, seconds by which clocks may differ.
-- Finds the next cursor; and, as a fourth value, the number of keys.
local cursor, now, margin = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
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
for from = 1, #dead, MAX_ARGUMENTS do
  redis.call('HDEL', claims, unpack(dead, from, math.min(from + MAX_ARGUMENTS - 1, #dead)))
end
local over = math.min(now, tonumber(redis.call('TIME')[1])) - window - margin
if over > 0 then
  -- Each confirmation removes from its sets what is older than the horizon; here are those in which nothing is stored
  -- now.
  local last = math.min(swept + MAX_ARGUMENTS, sets)
  for number = swept, last - 1 do
    entries = entries - redis.call('ZREMRANGEBYSCORE', prefix .. number, '-inf', '(' .. over)
  end
  redis.call('HSET', prefix .. 'sets', 'horizon', over, 'swept', last < sets and last or 0, 'entries', entries)
  -- A member that has not renewed its lease for a window ended long ago, and its numbers are removed, too. Its time
  -- runs from the first `tidy` after its latest renewal, and begins again after a jump of this server's clock.
  local jumped = over - (horizon or over) > tonumber(window)
  local members = redis.call('HGETALL', prefix .. 'members')
  for i = 1, #members, 2 do
    local since = tonumber(members[i + 1])
    if since == 0 or jumped then
      redis.call('HSET', prefix .. 'members', members[i], over)
    elseif over - since > tonumber(window) then
      redis.call('HDEL', prefix .. 'members', members[i])
      redis.call('DEL', prefix .. 'member:' .. members[i])
    end
  end
end
return { scanned[1], 0, 0, entries }
