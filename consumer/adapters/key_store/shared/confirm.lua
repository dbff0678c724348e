-- These keys were delivered: remember them, and end their claims. What another live session has claimed is not ours to
-- confirm (it took over when our lease had ended), unless it was delivered by now. Without a session (""), no claim counts.
-- ARGV: where the slice of time begins, the time within it (2 bytes), keys (16 bytes each).
-- Finds a byte a key: 1, remembered; 0, another session's; 2, remembered, but not claimed any more, and delivered before:
-- another member had taken it over and delivered it, too, or this is the second try of a call that had done its work.
local start, time, keys = ARGV[4], ARGV[5], ARGV[6]
local sub, find = string.sub, string.find
local claims, slice = prefix .. 'claims', prefix .. start .. ':'
local count, stored = #keys / 16, 0
local flags = {}

local function delivered(key)
  for _, one in ipairs(redis.call('HKEYS', prefix .. 'slices')) do
    local searched = prefix .. one .. ':'
    local entries = redis.call('GET', bucket_of(searched, key))
    local at = entries and find(entries, sub(key, 3, 14), 1, true)
    while at do
      if at % 14 == 1 then return true end
      at = find(entries, sub(key, 3, 14), at + 1, true)
    end
    if entries and #entries >= FULL and redis.call('HGET', beyond(searched), sub(key, 1, 14)) then return true end
  end
  return false
end

for from = 1, count, MOST do
  local all, bits, done = {}, {}, {}
  for i = from, math.min(from + MOST - 1, count) do
    all[#all + 1] = sub(keys, 16 * i - 15, 16 * i)
    bits[#bits + 1] = bits_of(all[#all])
  end
  local full = redis.call('HMGET', beyond(slice), unpack(bits))
  local holders = session ~= '' and redis.call('HMGET', claims, unpack(all)) or {}
  for j, key in ipairs(all) do
    local holder = holders[j]
    if is_anothers(holder) then
      flags[#flags + 1] = delivered(key) and '\1' or '\0'
    else
      flags[#flags + 1] = holder == false and delivered(key) and '\2' or '\1'
      done[#done + 1] = key
      if full[j] then
        redis.call('HSET', beyond(slice), sub(key, 1, 14), time)
      elseif redis.call('APPEND', bucket_of(slice, key), sub(key, 3, 14) .. time) >= FULL then
        redis.call('HSET', beyond(slice), bits[j], '')
      end
    end
  end
  if #done > 0 then
    redis.call('HDEL', claims, unpack(done))
    stored = stored + #done
  end
end
if stored > 0 then
  redis.call('HINCRBY', prefix .. 'slices', start, stored)
  -- Without it, an earlier version of pinstream takes the slice for expired.
  redis.call('SET', prefix .. start, '')
end
return answer(table.concat(flags), stored)
