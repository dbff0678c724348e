-- The sets of delivered keys, for the scripts that use them.
-- Delivered keys are in small sorted sets, which are numbered from 0. An entry is 14 bytes of a key, its score the
-- second of the delivery. Redis packs a set of up to 128 entries into some 22 bytes an entry, and forgets by one
-- command what is too old. There is a set for each PER_SET entries, however many there are (linear hashing): the next
-- new set takes what belongs there from just one other, so their number follows that of the keys in small steps, and
-- each key is in one known set.
local PER_SET, LEAST = 24, 64
local state = redis.call('HMGET', prefix .. 'sets', 'sets', 'entries', 'horizon', 'swept')
local sets, entries, swept = tonumber(state[1] or LEAST), tonumber(state[2] or 0), tonumber(state[4] or 0)
local horizon = state[3] -- what was delivered before is out of the window; false: not known yet (`tidy.lua`)
local whole = LEAST -- the largest power of two that is not above the number of sets
while 2 * whole <= sets do whole = 2 * whole end

-- Whoever chooses event ids cannot choose their sets: the secret of the layout decides. (A universal hash function: a
-- product has 47 bits, and Lua's numbers take 53.)
local secret = {}
for word in string.gmatch(layout or '', '%d+') do secret[#secret + 1] = tonumber(word) end
local _, _, s1, s2, s3, s4, s5, s6, s7 = unpack(secret)
local function place_of(entry)
  local a, b, c, d, e, f, g, h, i, j, k, l, m, n = string.byte(entry, 1, 14)
  return ((a * 256 + b) * s1 + (c * 256 + d) * s2 + (e * 256 + f) * s3 + (g * 256 + h) * s4
    + (i * 256 + j) * s5 + (k * 256 + l) * s6 + (m * 256 + n) * s7) % 2147483647
end
local function set_of(entry)
  local number = place_of(entry) % (2 * whole)
  return prefix .. (number < sets and number or number - whole)
end

-- Make a new set, or empty the last one, as the number of entries asks for; a bounded number of them in one script.
local function resize()
  for _ = 1, 100 do
    if entries > PER_SET * sets then
      local from, moved, left = prefix .. (sets - whole), {}, {}
      local found = redis.call('ZRANGE', from, 0, -1, 'WITHSCORES')
      for i = 1, #found, 2 do
        if place_of(found[i]) % (2 * whole) == sets then
          left[#left + 1] = found[i]
          moved[#moved + 1], moved[#moved + 2] = found[i + 1], found[i]
        end
      end
      if #left > 0 then
        redis.call('ZADD', prefix .. sets, unpack(moved))
        redis.call('ZREM', from, unpack(left))
      end
      sets = sets + 1
      if sets == 2 * whole then whole = sets end
    elseif 4 * entries < PER_SET * sets and sets > LEAST then
      if sets == whole then whole = whole / 2 end
      sets = sets - 1
      local into = prefix .. (sets - whole)
      redis.call('ZUNIONSTORE', into, 2, into, prefix .. sets, 'AGGREGATE', 'MAX')
      redis.call('DEL', prefix .. sets)
    end
  end
end

