-- What members share: keep a note, if one is given, and say which hold yet; and what each announces of itself.
-- ARGV: place, what it says, milliseconds for which it holds (0: none is given). One in this place that holds longer
-- stays. Then the member that announces, what, and milliseconds for which that holds.
-- Finds nothing; and, as further values, the notes: place, what it says, milliseconds left, ...; and what others
-- announce.
local name, place, holds = prefix .. 'notes', ARGV[5], tonumber(ARGV[7])
local LONGEST = 3600000 -- none holds longer: the clock was set back since
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- What a hash has that still holds: each with its field, its text and the milliseconds left; the rest is removed.
local function still_holds(hash)
  local kept, stored = {}, redis.call('HGETALL', hash)
  for i = 1, #stored, 2 do
    local ends, text = string.match(stored[i + 1], '^(%d+) (.*)$')
    local left = tonumber(ends) - now
    if left <= 0 or left > LONGEST then
      redis.call('HDEL', hash, stored[i])
    else
      kept[#kept + 1] = { stored[i], text, left }
    end
  end
  return kept
end

local notes, others, before = {}, {}, 0
for _, note in ipairs(still_holds(name)) do
  if note[1] == place then before = note[3] end
  for _, part in ipairs(note) do notes[#notes + 1] = part end
end
if holds > before then
  redis.call('HSET', name, place, string.format('%d %s', now + math.min(holds, LONGEST), ARGV[6]))
end
-- Apart from the notes: an earlier version of pinstream does not know announcements.
local members = prefix .. 'announced'
redis.call('HSET', members, ARGV[8], string.format('%d %s', now + tonumber(ARGV[10]), ARGV[9]))
for _, said in ipairs(still_holds(members)) do
  if said[1] ~= ARGV[8] then others[#others + 1] = said[2] end
end
return { '', 0, 0, notes, others }
