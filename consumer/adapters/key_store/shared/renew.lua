-- Prolong the lease of the session, or begin it.
-- ARGV: milliseconds, "begin" or "", layout, seconds for which the member's numbers are kept.
-- Finds the layout that the shard has, which members must agree on, as the first one has set it; "" if the lease had ended.
local lease, begin, layout, keep = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local name, found = prefix .. 'session:' .. session, ''
if begin ~= '' then
  redis.call('SET', name, '', 'PX', lease)
  redis.call('SETNX', prefix .. 'layout', layout)
end
if begin ~= '' or redis.call('PEXPIRE', name, lease) == 1 then found = redis.call('GET', prefix .. 'layout') or layout end
local answered = answer(found)
redis.call('EXPIRE', prefix .. 'member:' .. member, keep)
return answered
