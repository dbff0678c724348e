-- What members share: keep a note, if one is given, and say which hold yet; and what each announces of itself.
-- ARGV: place, what it says, milliseconds for which it holds (0: none is given). One in this place that holds longer
-- stays. Then the member that announces, what, and milliseconds for which that holds.
-- Finds nothing; and, as further values, the notes: place, what it says, milliseconds left, ...; and what others
-- announce.
local name, place, holds = prefix .. 'notes', ARGV[5], tonumber(ARGV[7])
local LONGEST = 3600000 -- none holds longer: the clock was set back since
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local notes, stored, before = {}, redis.call('HGETALL', name), 0
for i = 1, #stored, 2 do
  local ends, text = string.match(stored[i + 1], '^(%d+) (.*)$')
  local left = tonumber(ends) - now
  if left <= 0 or left > LONGEST then
    redis.call('HDEL', name, stored[i])
  else
    if stored[i] == place then before = left end
    notes[#notes + 1] = stored[i]
    notes[#notes + 1] = text
    notes[#notes + 1] = left
  end
end
if holds > before then
  redis.call('HSET', name, place, string.format('%d %s', now + math.min(holds, LONGEST), ARGV[6]))
end
-- Apart from the notes: an earlier version of pinstream does not know announcements.
local members, others = prefix .. 'announced', {}
redis.call('HSET', members, ARGV[8], string.format('%d %s', now + tonumber(ARGV[10]), ARGV[9]))
stored = redis.call('HGETALL', members)
for i = 1, #stored, 2 do
  local ends, text = string.match(stored[i + 1], '^(%d+) (.*)$')
  local left = tonumber(ends) - now
  if left <= 0 or left > LONGEST then
    redis.call('HDEL', members, stored[i])
  elseif stored[i] ~= ARGV[8] then
    others[#others + 1] = text
  end
end
return { '', 0, 0, notes, others }
