"""What every part shares while one message is handled: the time, the commands so far, the dice. And what time it is.

Theory of operation of `Clock`. Our clock is held against the platform's and against the records': a clock is an
input like any other, and may be wrong. Two others say what time it is:

* the platform, in the ``Date`` of its own answers (whole seconds). It was written between the call and its answer, so
  it gives bounds of how far our clock is off. What is kept of it is what the platform's clock shows more than our
  monotonic one, which is never set: so it holds on while our clock is set right, or wrong. Of the last few answers the
  median counts, so that one server among many that is wrong itself does not move us. While there are fewer than three,
  one counts only if another clock bears it out, ours or that of the records: were a single wrong one believed, all
  events might be refused by it, no call would be made any more, and so nothing would ever put it right.
* the records, in their Kafka timestamps: one that is stamped later than now says that our clock is behind, or that of
  its producer (or broker) ahead. That is no proof, so it moves nothing; of late fetches the median is shown.

Where the platform's clock differs by a minute or more it is the one that counts: the core's time is corrected by the
difference, and events are judged by that. While it has said nothing yet, an event that lies too far ahead waits
(`consumer.engine.waiting`) if its own record was stamped ahead, too; else it is refused, as it is when the platform
has spoken: then it is the record that is wrong.

Our clock jumps against the monotonic one when it is set, and when the machine was suspended. Afterwards what the
platform said is certain only if our clock agrees with it. If not, it goes on to count: no event becomes too old by
that. But an event that lies ahead of it waits, until answers tell whether the clock was set wrong or the machine
stood still.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime
from random import Random
from statistics import median_low
from typing import Final

from consumer.engine.counters import Counters
from consumer.engine.messages import Command, Report
from consumer.engine.model import Chunk, Instant, Policy
from consumer.engine.statistics import ClockStatistics


class Context:
    """Set anew for each input by `Pipeline.handle`; the random numbers come from one seed (rule 10)."""

    def __init__(self, policy: Policy, seed: int) -> None:
        self.policy = policy
        self.counters = Counters()
        self.now = Instant(0.0, 0.0)
        self._commands: list[Command] = []
        self._random = Random(seed)  # noqa: S311 - jitter, not a secret
        self._numbers = 0

    def begin(self, now: Instant) -> None:
        """An input came at `now`."""
        self.now = now

    def emit(self, command: Command) -> None:
        """Something is to be done."""
        self._commands.append(command)

    def take(self) -> list[Command]:
        """All that is to be done, in order; the list starts anew."""
        commands, self._commands = self._commands, []
        return commands

    def report(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Something worth a log line."""
        self.emit(Report(level, event, fields))

    def number(self) -> int:
        """A number no other command or batch has."""
        self._numbers += 1
        return self._numbers

    def jitter(self) -> float:
        """Uniform from 0 to 1."""
        return self._random.random()


WORTH_A_WORD: Final = 60.0
"""Seconds of difference from which on our clock counts as wrong, and that is reported."""
SKEW: Final = 300.0
"""Seconds that an event may lie ahead (`consumer.conversion.converter`)."""
_JUMP: Final = 5.0
"""Seconds. Clocks that are slewed, and processes that stand still, do not differ by so much between two inputs."""
_ANSWERS: Final = 5
_ENOUGH: Final = 3
"""Answers from which on the median counts, whatever other clocks say: one that is wrong does not move it."""
_STAMPS: Final = 32
_LATELY: Final = 600.0
"""Seconds for which a record's timestamp says something of what time it is."""
_LOOK_EVERY: Final = 1.0
_REMIND_EVERY: Final = 60.0

_Bounds = tuple[float, float]
"""What a clock shows more than the monotonic one: at least, and at most."""


class Clock:
    """The core's time. `version` counts how often there was news of what time it is."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._local = Instant(0.0, 0.0)
        self._above: float | None = None
        """What our clock shows more than the monotonic one."""
        self._answers: deque[_Bounds] = deque(maxlen=_ANSWERS)
        """What the platform's clock showed in its latest answers."""
        self._platform: _Bounds | None = None
        """What of that counts; None: nothing yet."""
        self._stamps: deque[tuple[float, float]] = deque(maxlen=_STAMPS)
        """When records were fetched (monotonic), and how much more than that they were stamped with."""
        self.certain = False
        """Whether the platform has said what time it is, and nothing has happened since that makes it doubtful."""
        self._look_at = self._remind_at = -math.inf
        self._off_since: float | None = None
        self.version = 0

    # -- what is heard

    def begin(self, now: Instant) -> Instant:
        """It is `now`, as far as our clocks go; returns what time it is."""
        above = now.unix - now.monotonic
        if self._above is not None and abs(above - self._above) > _JUMP:
            self._jumped(now, above - self._above)
        self._local, self._above = now, above
        return self.correct(now)

    def _jumped(self, now: Instant, seconds: float) -> None:
        self.version += 1
        self.certain = self.certain and abs(self._behind(now) or 0.0) < WORTH_A_WORD
        if not self.certain:
            self._answers.clear()
        self._context.report("warning", "clock_jumped", seconds=round(seconds, 1))

    def answered(self, date: str | None, sent_at: float) -> None:
        """The platform answered a call of then (monotonic), and what its clock said."""
        moment = _moment(date)
        if moment is None:
            return
        before = self._behind(self._local) if self.certain else None
        self._answers.append((moment - self._local.monotonic, moment + 1 - sent_at))
        counts = self._what_counts()
        if counts is None:
            return
        self._platform, self.certain = counts, True
        behind = self._behind(self._local) or 0.0
        if before is None or abs(before - behind) > _JUMP:
            self.version += 1
        self._context.begin(self.correct(self._local))

    def _what_counts(self) -> _Bounds | None:
        """What of the platform's answers is to be believed; None: nothing yet."""
        if len(self._answers) >= _ENOUGH:
            _, *counts = median_low((least + most, least, most) for least, most in self._answers)
            return counts[0], counts[1]
        for clock in (self._above, self._stamped(self._local)):
            for answer in reversed(self._answers):
                if clock is not None and abs(_beyond(clock, answer)) < WORTH_A_WORD:
                    return answer
        return None

    def fetched(self, chunks: Iterable[Chunk]) -> None:
        """Records came, which tell what time it was when they were stamped."""
        now = self._local.monotonic
        for chunk in chunks:
            stamp = chunk.records[-1].timestamp if chunk.records else -1
            if stamp >= 0:
                self._stamps.append((now, stamp / 1000 - now))

    # -- what time it is

    def correct(self, now: Instant) -> Instant:
        """What time it is when our clocks say `now`."""
        behind = self._behind(now) or 0.0
        return now if abs(behind) < WORTH_A_WORD else Instant(now.monotonic, now.unix + behind)

    def may_wait(self, time: float, timestamp: int) -> bool:
        """Whether an event of `time`, too far ahead of now, may be right, and it is our clock that is wrong.

        `timestamp`: its record's, in milliseconds.
        """
        stamp = timestamp / 1000
        return not self.certain and stamp > self._context.now.unix + WORTH_A_WORD and time <= stamp + SKEW

    def _behind(self, now: Instant) -> float | None:
        """Seconds that our clock is behind the platform's, at least; ahead, if negative. None: not known."""
        return None if self._platform is None else _beyond(now.unix - now.monotonic, self._platform)

    def _stamped(self, now: Instant) -> float | None:
        """How much more than the monotonic clock records of late were stamped with: half of the fetches by more, half
        by less; None: none were."""
        lately = [above for at, above in self._stamps if now.monotonic - at <= _LATELY]
        return median_low(lately) if lately else None

    def _stamped_ahead(self, now: Instant) -> float:
        """Seconds that records of late were stamped ahead of our clock."""
        stamped = self._stamped(now)
        return 0.0 if stamped is None else max(0.0, stamped - (now.unix - now.monotonic))

    # -- what is reported

    def mind(self) -> None:
        """Tell of a clock that is wrong, once a minute, and when it is right again."""
        now = self._local
        if now.monotonic < self._look_at:
            return
        self._look_at = now.monotonic + _LOOK_EVERY
        behind, stamped = self._behind(now), self._stamped_ahead(now)
        if behind is not None and abs(behind) >= WORTH_A_WORD:
            self._tell("platform", behind)
        elif stamped >= WORTH_A_WORD:
            self._tell("records", stamped)
        elif self._off_since is not None:
            self._context.report("info", "clock_right", after_seconds=round(now.monotonic - self._off_since))
            self._off_since, self._remind_at = None, -math.inf

    def _tell(self, by: str, seconds: float) -> None:
        if self._local.monotonic < self._remind_at:
            return
        self._remind_at = self._local.monotonic + _REMIND_EVERY
        self._off_since = self._local.monotonic if self._off_since is None else self._off_since
        self._context.report(
            "warning", "clock_off", by=by, behind_seconds=round(seconds), certain=int(self.certain)
        )

    def statistics(self, now: Instant, early: int) -> ClockStatistics:
        """What is known of our clock; `early`: events that wait for it."""
        behind = self._behind(now)
        corrected = behind if behind is not None and abs(behind) >= WORTH_A_WORD else 0.0
        return ClockStatistics(behind, self._stamped_ahead(now), corrected, early)


def _beyond(above: float, bounds: _Bounds) -> float:
    """By how much a clock that shows so much more than the monotonic one is behind these bounds; ahead, if negative."""
    least, most = bounds
    return max(0.0, least - above) + min(0.0, most - above)


def _moment(date: str | None) -> float | None:
    """Unix seconds of a ``Date`` header (RFC 9110), if it can be read."""
    if date is None or len(date) > 64:
        return None
    try:
        moment = parsedate_to_datetime(date)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
