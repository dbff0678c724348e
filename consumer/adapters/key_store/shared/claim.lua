-- Which of these keys were delivered within the window? Those that were not are claimed, unless another live session
-- has claimed them. Without a session (""), nothing is claimed.
-- ARGV: the oldest stamp that counts, keys (16 bytes each).
-- Finds a byte a key (`Found`).
local oldest, keys = tonumber(ARGV[5]), ARGV[6]
local sub, count = string.sub, #ARGV[6] / 16
local flags = {}
for i = 1, count do flags[i] = FOUND_NEW end
if session ~= '' and redis.call('EXISTS', prefix .. 'session:' .. session) == 0 then
  return redis.error_reply('NOLEASE the lease of this session has ended')
end

-- Each set is asked once.
local sought, rows = {}, {}
for i = 1, layout and count or 0 do
  local entry = sub(keys, 16 * i - 15, 16 * i - 2)
  local set = set_of(entry)
  local of = sought[set]
  if of then
    of[#of + 1] = entry
    rows[set][#of] = i
  else
    sought[set], rows[set] = { entry }, { i }
  end
end
for set, of in pairs(sought) do
  for j, stamp in ipairs(redis.call('ZMSCORE', set, unpack(of))) do
    if stamp and tonumber(stamp) >= oldest then flags[rows[set][j]] = FOUND_DELIVERED end
  end
end

if session ~= '' then
  local claims = prefix .. 'claims'
  for from = 1, count, MAX_ARGUMENTS do
    local asked, places = {}, {}
    for i = from, math.min(from + MAX_ARGUMENTS - 1, count) do
      if flags[i] == FOUND_NEW then
        asked[#asked + 1] = sub(keys, 16 * i - 15, 16 * i)
        places[#places + 1] = i
      end
    end
    if #asked > 0 then
      local taken = {}
      for j, holder in ipairs(redis.call('HMGET', claims, unpack(asked))) do
        if is_anothers(holder) then
          flags[places[j]] = FOUND_CLAIMED_BY_OTHER
        elseif holder ~= session then
          taken[#taken + 1] = asked[j]
          taken[#taken + 1] = session
        end
      end
      if #taken > 0 then redis.call('HSET', claims, unpack(taken)) end
    end
  end
end
return answer(table.concat(flags))
