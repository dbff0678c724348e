"""The engine's time, and until when the key store remembers: this machine's clock may be wrong.

Theory of operation. This machine's clock is an input like any other. So it is compared with two others:

* The platform's, from the ``Date`` of its answers (whole seconds). The platform wrote it between the call and its
  answer, which gives bounds for the difference. It is kept relative to the monotonic clock, which is never set. The
  median of the last few answers counts, so that one wrong server has no effect. With fewer than three answers, one
  counts only if our clock or the records confirm it: one wrong answer could refuse all events, and then no call would
  be made any more, whose answer could correct it.
* The records', from their Kafka timestamps: the median of recent fetches. It corrects nothing: they may be wrong.

If the platform's clock differs by a minute or more, the engine's time is corrected by the difference. Until it is
known, an event too far ahead waits (`consumer.engine.intake.untimely`) if its own record was stamped ahead too;
otherwise it is refused. An event that is too old waits as well, unless it is too old by the time of forgetting (below),
too. Once the platform's time is known, both are refused: their records are wrong, or old.

Our clock jumps against the monotonic one when it is set, and after the machine was suspended. Then the platform's time
is certain only if our clock agrees with it. If not, it still counts, so that no event becomes too old; but an event
ahead of it waits until new answers show which of the two it was. An answer to a call from before the jump shows
nothing: it may have been written before the suspension.

The key store has two times, which err on the side of remembering, since a key that is forgotten early means an event
that is sent twice:

* A delivered key is stored under the corrected time (`delivered_at`); while that is not certain, under the latest
  time that any clock shows. A key of the future is remembered longer.
* Keys are out of the window by a time of its own (`forgotten_at`). After a start nothing is, until the platform's time
  is certain, or the records' timestamps agree with our clock although for a minute no call was answered. From then on
  this time grows with the monotonic clock, whatever jumps. It is set back where the corrected time is earlier, and
  forward only once: when the platform's time is certain for the first time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median_low
from typing import Final

from consumer.engine.context import SKEW, Context
from consumer.engine.figures.statistics import ClockStatistics
from consumer.engine.model import Chunk, Instant, Later, Untimely
from consumer.engine.sending.verdicts import unix_of

# Seconds of difference from which on our clock counts as wrong and is reported.
WORTH_A_WORD: Final = 60.0
# Seconds. Slewing a clock, or a process that hangs, makes no such difference between two inputs.
_JUMP: Final = 5.0
_JUMP_MEANS: Final = (
    "this machine's clock was set, or the machine was suspended: what was delivered stays remembered, and events are "
    "judged by Pinterest's clock as soon as it is known"
)
_ANSWERS: Final = 5
# Answers from which on the median counts without another clock: one wrong answer does not change it.
_ENOUGH: Final = 3
_STAMPS: Final = 32
# Seconds for which a record's timestamp says something about the current time.
_LATELY: Final = 600.0
# Seconds after the first fetch in which only the platform confirms our clock.
_FIRST_WORD: Final = 60.0

_NEVER: Final = Instant(0.0, 0.0)
# How far a clock is ahead of the monotonic one: at least, and at most.
_Bounds = tuple[float, float]


class Clock:
    """The engine's time. `version` grows whenever the time became known or changed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # What this machine's clocks showed last.
        self.local = _NEVER
        # When our clock jumped last (monotonic), and how often it has.
        self._jumped_at, self.jumps = -math.inf, 0
        # What the platform's clock showed in its latest answers; and the answer, or median, that counts (None: none).
        self._answers: deque[_Bounds] = deque(maxlen=_ANSWERS)
        self._platform: _Bounds | None = None
        # The latest answers of the platform, as far as they did not say what time it is.
        self._timeless = 0
        # When records were fetched (monotonic), and how far their timestamps were ahead of that.
        self._stamps: deque[tuple[float, float]] = deque(maxlen=_STAMPS)
        self._first_fetched: float | None = None
        # Whether the platform's time is known, and nothing has made it doubtful since.
        self.certain = False
        # How far the time of forgetting is ahead of the monotonic clock (None: our clock is not confirmed yet), and
        # whether the platform has confirmed it; else only the records have.
        self._forgets: float | None = None
        self._settled = False
        self.version = 0

    # -- observations

    def begin(self, now: Instant) -> Instant:
        """Take `now` from this machine's clocks and return the corrected time."""
        jump = 0.0 if self.local is _NEVER else now.ahead - self.local.ahead
        if abs(jump) > _JUMP:
            self.version += 1
            self.jumps += 1
            self._jumped_at = now.monotonic
            self.certain = self.certain and abs(self._behind(now) or 0.0) < WORTH_A_WORD
            if not self.certain:
                self._answers.clear()
            self._context.report("warning", "clock_jumped", seconds=round(jump, 1), means=_JUMP_MEANS)
        self.local = now
        return self._corrected()

    def answered(self, date: str | None, sent_at: float) -> None:
        """Take the ``Date`` of the platform's answer to a call that was sent at `sent_at` (monotonic)."""
        if sent_at < self._jumped_at:
            return
        moment = unix_of(date or "")
        if moment is None:
            self._timeless += 1
            self.version += self._timeless == _ENOUGH
            return
        self._timeless = 0
        before = self._behind(self.local) if self.certain else None
        self._answers.append((moment - self.local.monotonic, moment + 1 - sent_at))
        counts = self._what_counts()
        if counts is None:
            return
        self._platform, self.certain = counts, True
        behind = self._behind(self.local) or 0.0
        if before is None or abs(before - behind) > _JUMP:
            self.version += 1
        self._context.now = self._corrected()

    def _what_counts(self) -> _Bounds | None:
        """Return the bounds that count, from the platform's answers; None: none yet."""
        if len(self._answers) >= _ENOUGH:
            _, least, maximum = median_low(
                [(least + maximum, least, maximum) for least, maximum in self._answers]
            )
            return least, maximum
        for clock in (self.local.ahead, self._stamped(self.local)):
            for answer in reversed(self._answers):
                if clock is not None and abs(_beyond(clock, answer)) < WORTH_A_WORD:
                    return answer
        return None

    def fetched(self, chunks: Iterable[Chunk]) -> None:
        """Take the timestamps of fetched records."""
        now = self.local.monotonic
        for chunk in chunks:
            stamp = chunk.records[-1].timestamp if chunk.records else -1
            if stamp >= 0:
                self._stamps.append((now, stamp / 1000 - now))
        if self._first_fetched is None:
            self._first_fetched = now
        # Producers may be on this machine, and have its wrong clock: for a minute only the platform counts.
        if self._forgets is None and now - self._first_fetched >= _FIRST_WORD:
            above, stamped = self.local.ahead, self._stamped(self.local)
            if stamped is not None and abs(stamped - above) < WORTH_A_WORD:
                self._forgets = above
                self.version += 1

    # -- now

    def correct(self, now: Instant) -> Instant:
        """Return the corrected time at the moment when this machine's clocks say `now`."""
        behind = self._behind(now) or 0.0
        return now if abs(behind) < WORTH_A_WORD else Instant(now.monotonic, now.unix + behind)

    def _corrected(self) -> Instant:
        """Return the corrected time now, and let the time of forgetting follow it, never faster than time goes by."""
        now = self.correct(self.local)
        if self.certain and not self._settled:
            self._forgets, self._settled = now.ahead, True
        elif self._forgets is not None:
            self._forgets = min(self._forgets, now.ahead)
        return now

    @property
    def delivered_at(self) -> float:
        """When events were delivered whose keys are stored now, in unix seconds; if in doubt, too late."""
        now = self._context.now
        if self.certain:
            return now.unix
        clocks = [now.ahead, self._stamped(self.local), *(least for least, _ in self._answers)]
        return now.monotonic + max(above for above in clocks if above is not None)

    @property
    def forgotten_at(self) -> float:
        """The time by which keys are out of the window, in unix seconds; 0: none is."""
        return 0.0 if self._forgets is None else self.local.monotonic + self._forgets

    # -- wait or judge

    @property
    def reports_no_time(self) -> bool:
        """True if the platform's answers do not say what time it is: nothing better than our clock will come."""
        return self._timeless >= _ENOUGH

    def may_wait(self, event: Untimely, timestamp: int) -> Later | None:
        """Return how an event waits that may be right, and our clock wrong; None: it does not wait.

        `timestamp`: its record's, in milliseconds.
        """
        stamp, now = timestamp / 1000, self._context.now.unix
        if self.certain:
            return None
        if event.since > now:
            is_stamped_ahead = stamp > now + WORTH_A_WORD and event.since <= stamp + SKEW
            return Later(event.since) if is_stamped_ahead else None
        too_old = self._forgets is not None and event.until < self.forgotten_at
        return None if too_old or self.reports_no_time else Later(math.inf)

    def _behind(self, now: Instant) -> float | None:
        """Return the seconds that our clock is behind the platform's, at least; ahead, if negative; None: unknown."""
        return None if self._platform is None else _beyond(now.ahead, self._platform)

    def _stamped(self, now: Instant) -> float | None:
        """Return how far recent records' timestamps are ahead of the monotonic clock (median); None: there are none."""
        lately = [above for at, above in self._stamps if now.monotonic - at <= _LATELY]
        return median_low(lately) if lately else None

    def figures(self, now: Instant, future_dated: int) -> ClockStatistics:
        """Return a snapshot; `now` is by this machine's clocks, `future_dated` counts the events that wait."""
        behind, stamped = self._behind(now), self._stamped(now)
        corrected = behind if behind is not None and abs(behind) >= WORTH_A_WORD else 0.0
        # A timestamp that lies behind us is only old.
        records = 0.0 if stamped is None else max(0.0, stamped - now.ahead)
        lag = None if self._forgets is None else now.ahead + corrected - self._forgets
        return ClockStatistics(behind, records, corrected, future_dated, self.jumps, lag)


def _beyond(above: float, bounds: _Bounds) -> float:
    """Return how far a clock is behind these bounds; ahead, if negative. `above`: see `_Bounds`."""
    least, maximum = bounds
    return max(0.0, least - above) + min(0.0, maximum - above)
