-- End this member's claims of these keys: it will not deliver them.
-- ARGV: keys (16 bytes each). Finds for each that it is new (`Found`).
local keys = ARGV[5]
local claims, count = prefix .. 'claims', #keys / 16
for from = 1, count, MAX_ARGUMENTS do
  local all, mine = {}, {}
  for i = from, math.min(from + MAX_ARGUMENTS - 1, count) do all[#all + 1] = string.sub(keys, 16 * i - 15, 16 * i) end
  for j, holder in ipairs(redis.call('HMGET', claims, unpack(all))) do
    if holder and known[holder] == false then mine[#mine + 1] = all[j] end
  end
  if #mine > 0 then redis.call('HDEL', claims, unpack(mine)) end
end
return answer(string.rep(FOUND_NEW, count))
