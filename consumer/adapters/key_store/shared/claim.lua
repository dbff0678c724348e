-- Which of these keys were delivered within the window? Those that were not are claimed, unless another live session
-- has claimed them. Without a session (""), nothing is claimed.
-- ARGV: the oldest stamp that counts, seconds of a step, keys (16 bytes each).
-- Finds a byte a key: 0, not delivered, and claimed; 1, delivered; 2, another session's.
local oldest, step, keys = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
if session ~= '' and redis.call('EXISTS', prefix .. 'session:' .. session) == 0 then
  return redis.error_reply('NOLEASE the lease of this session has ended')
end
local sub, byte, find = string.sub, string.byte, string.find
local count = #keys / 16
local flags = {}
for i = 1, count do flags[i] = '\0' end

-- An entry of a bucket has 14 bytes: 12 of the key, and 2 for the time within the slice.
for _, start in ipairs(redis.call('HKEYS', prefix .. 'slices')) do
  local slice = prefix .. start .. ':'
  local least = math.ceil((oldest - tonumber(start)) / step)
  for from = 1, count, MOST do
    local names, rest, places = {}, {}, {}
    for i = from, math.min(from + MOST - 1, count) do
      names[i - from + 1] = bucket_of(slice, sub(keys, 16 * i - 15, 16 * i - 13))
    end
    for j, bucket in ipairs(redis.call('MGET', unpack(names))) do
      if bucket then
        local i = from + j - 1
        local entry = sub(keys, 16 * i - 13, 16 * i - 2)
        local at = find(bucket, entry, 1, true)
        while at do
          if at % 14 == 1 then
            local high, low = byte(bucket, at + 12, at + 13)
            if high * 256 + low >= least then
              flags[i] = '\1'
              break
            end
          end
          at = find(bucket, entry, at + 1, true)
        end
        if #bucket >= FULL and flags[i] == '\0' then
          rest[#rest + 1] = sub(keys, 16 * i - 15, 16 * i - 2)
          places[#places + 1] = i
        end
      end
    end
    for j, time in ipairs(#rest > 0 and redis.call('HMGET', beyond(slice), unpack(rest)) or {}) do
      if time and byte(time, 1) * 256 + byte(time, 2) >= least then flags[places[j]] = '\1' end
    end
  end
end

if session ~= '' then
  local claims = prefix .. 'claims'
  for from = 1, count, MOST do
    local asked, places = {}, {}
    for i = from, math.min(from + MOST - 1, count) do
      if flags[i] == '\0' then
        asked[#asked + 1] = sub(keys, 16 * i - 15, 16 * i)
        places[#places + 1] = i
      end
    end
    if #asked > 0 then
      local taken = {}
      for j, holder in ipairs(redis.call('HMGET', claims, unpack(asked))) do
        if is_anothers(holder) then
          flags[places[j]] = '\2'
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
