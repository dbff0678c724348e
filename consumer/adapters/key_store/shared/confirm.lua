-- These keys were delivered: remember them, and end their claims. What another live session has claimed is not ours to
-- confirm (it took over when our lease had ended), unless it was delivered by now. Without a session (""), no claim
-- counts. ARGV: the second of the delivery, keys (16 bytes each).
-- Finds a byte a key (`Stored`). Delivered twice: it is not claimed any more, and was delivered before. Another member
-- had taken it over and delivered it, too, or this is the second try of a call that had done its work.
local stamp, keys = ARGV[5], ARGV[6]
local claims, count, stored = prefix .. 'claims', #keys / 16, 0
local flags = {}

for from = 1, count, MAX_ARGUMENTS do
  local all, done = {}, {}
  for i = from, math.min(from + MAX_ARGUMENTS - 1, count) do all[#all + 1] = string.sub(keys, 16 * i - 15, 16 * i) end
  local holders = session ~= '' and redis.call('HMGET', claims, unpack(all)) or {}
  for j, key in ipairs(all) do
    local entry = string.sub(key, 1, 14)
    local set, holder = set_of(entry), holders[j]
    if is_anothers(holder) then
      flags[#flags + 1] = redis.call('ZSCORE', set, entry) and STORED_DURABLE or STORED_TAKEN_OVER
    else
      -- Of two deliveries the later one counts. A server without memory refuses this, and nothing has been changed.
      local new = redis.call('ZADD', set, 'GT', stamp, entry)
      entries = entries + new
      if horizon then entries = entries - redis.call('ZREMRANGEBYSCORE', set, '-inf', '(' .. horizon) end
      flags[#flags + 1] = holder == false and new == 0 and STORED_DELIVERED_TWICE or STORED_DURABLE
      done[#done + 1] = key
    end
  end
  if #done > 0 then
    redis.call('HDEL', claims, unpack(done))
    stored = stored + #done
  end
end
if stored > 0 then
  resize()
  redis.call('HSET', prefix .. 'sets', 'sets', sets, 'entries', entries)
end
return answer(table.concat(flags), stored)
