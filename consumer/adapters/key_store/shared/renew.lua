-- Prolong the lease of the session, or begin it.
-- ARGV: milliseconds, "begin" or "", layout.
-- Finds the layout that the shard has, which members must agree on, as the first one has set it; "" if the lease had ended.
local lease, begin, layout = ARGV[4], ARGV[5], ARGV[6]
local name, found = prefix .. 'session:' .. session, ''
if begin ~= '' then
  redis.call('SET', name, '', 'PX', lease)
  redis.call('SETNX', prefix .. 'layout', layout)
end
if begin ~= '' or redis.call('PEXPIRE', name, lease) == 1 then found = redis.call('GET', prefix .. 'layout') or layout end
-- The member's numbers do not expire, either (`tidy.lua`): that would look like a loss.
redis.call('HSET', prefix .. 'members', member, redis.call('HGET', prefix .. 'members', 'removals') or 0)
return answer(found)
