-- Prolong the lease of the session, or begin it.
-- ARGV: milliseconds, "begin" or "".
-- Finds "1"; "" if the lease had ended.
local lease, begin, name = ARGV[5], ARGV[6], prefix .. 'session:' .. session
local found = ''
if begin ~= '' then
  redis.call('SET', name, '', 'PX', lease)
  found = '1'
elseif redis.call('PEXPIRE', name, lease) == 1 then
  found = '1'
end
-- The member's numbers do not expire, either (`tidy.lua`): that would look like a loss.
redis.call('HSET', prefix .. 'members', member, 0)
return answer(found)
