-- What every script begins with, after the names of `Found` and `Stored` (`server._in_lua`).
-- KEYS[1]: the shard's prefix. ARGV: the layout that this member would make; this member, its session, its earlier
-- sessions; and what the script itself asks for.
local prefix, member, session = KEYS[1], ARGV[2], ARGV[3]
-- While a cluster moves a slot, its keys are on two nodes, and neither can tell what was delivered. Then the server
-- refuses a command that names several keys of which one does not exist; with it this script ends before it has changed
-- anything.
redis.call('EXISTS', prefix .. 'layout', prefix .. 'never')
-- Whoever comes first makes the layout: its version and the window, which members must agree on, and a secret
-- (`sets.lua`). Another version would not find what this one stores, and another window would forget what this one
-- needs.
local layout = redis.call('GET', prefix .. 'layout')
if not layout and member ~= '' then
  layout = ARGV[1]
  redis.call('SET', prefix .. 'layout', layout)
end
local version, window = string.match(layout or ARGV[1], '^(%d+) (%d+)')
local ours, needed = string.match(ARGV[1], '^(%d+) (%d+)')
if version ~= ours then return redis.error_reply('LAYOUT of another version') end
if window ~= needed then return redis.error_reply('LAYOUT with another window') end
local MAX_ARGUMENTS = 1000 -- arguments of one command: Lua's stack ends at 8,000

-- Whether another member's session holds this claim, and its lease has not ended.
local known = { [session] = false }
for former in string.gmatch(ARGV[4], '%S+') do known[former] = false end
local function is_anothers(holder)
  if not holder then return false end
  if known[holder] == nil then known[holder] = redis.call('EXISTS', prefix .. 'session:' .. holder) == 1 end
  return known[holder]
end

-- Every script returns what it found; how many scripts this member has run here, this one included; and how many keys
-- it had confirmed here before. If the store lost something, these numbers fall.
local function answer(found, confirmed)
  if member == '' then return { found, 0, 0 } end
  local name = prefix .. 'member:' .. member
  local calls = redis.call('HINCRBY', name, 'calls', 1)
  local before = tonumber(redis.call('HGET', name, 'confirmed') or '0')
  if confirmed then redis.call('HINCRBY', name, 'confirmed', confirmed) end
  return { found, calls, before }
end

