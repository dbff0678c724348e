-- What every script begins with.
-- KEYS[1]: the shard's prefix. ARGV: this member, its session, its earlier sessions, and what the script itself asks for.
local prefix, member, session = KEYS[1], ARGV[1], ARGV[2]
-- While a cluster moves a slot, its keys are on two nodes, and neither can tell what was delivered. Then the server refuses a
-- command that names several keys of which one does not exist; with it this script ends before it has changed anything.
redis.call('EXISTS', prefix .. 'layout', prefix .. 'never')
local MOST = 1000 -- arguments of one command: Lua's stack ends at 8,000

-- Whether another member's session holds this claim, and its lease has not ended.
local known = { [session] = false }
for former in string.gmatch(ARGV[3], '%S+') do known[former] = false end
local function is_anothers(holder)
  if not holder then return false end
  if known[holder] == nil then known[holder] = redis.call('EXISTS', prefix .. 'session:' .. holder) == 1 end
  return known[holder]
end

-- The string that has this key's entries of one slice of time: by 17 bits of the key.
local function bits_of(key) return string.sub(key, 1, 2) .. (string.byte(key, 3) < 128 and 'a' or 'b') end
local function bucket_of(slice, key) return slice .. bits_of(key) end

-- Bytes from which on such a string is full: whoever chooses event ids could make one so long that a search in it takes seconds.
-- Further entries are in a hash of the slice, which no choice makes slow; there the full strings stand, too, by their bits.
local FULL = 14 * 1024
local function beyond(slice) return slice .. 'beyond' end

-- Every script returns what it found; how many scripts this member has run here, this one included; and how many keys it had
-- confirmed here before. If the store lost something, these numbers fall.
local function answer(found, confirmed)
  if member == '' then return { found, 0, 0 } end
  local name = prefix .. 'member:' .. member
  local calls = redis.call('HINCRBY', name, 'calls', 1)
  local before = tonumber(redis.call('HGET', name, 'confirmed') or '0')
  if confirmed then redis.call('HINCRBY', name, 'confirmed', confirmed) end
  return { found, calls, before }
end

