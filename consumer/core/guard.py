"""The guard: intake stops before a wrong mapping empties a topic into dead letters.

Theory of operation. Per topic it keeps a sample of the latest records read that were meant to be sent: rejected at once
(undecodable, unconvertible), or events that go on. What the mapping filters is in none: nine page views that nobody
wants must not hide that each checkout is refused. What the API says of an event comes as much as a whole budget of open
events later, and not at all while the API is down. So that is another sample, of the latest events judged: counted
with the reads, a refusal would find its record forgotten; and counted when all is over, an outage would leave
rejections alone. Of the latest records would be dead letters: those rejected, and of those that went on the refused
share. Each record has one verdict in each sample that it comes to, and what has no verdict yet is in none.

Tripped, it stays so: only who mends the mapping and starts anew knows that it is mended.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from consumer.core.context import Context
from consumer.core.dedup import Delivery
from consumer.core.intake import Prepared
from consumer.core.model import Rejection, Stage
from consumer.core.selection import EXPIRED
from consumer.core.statistics import GuardStatistics

_REMIND_EVERY = 60.0
_REASONS_MOST = 100
"""Reasons kept of a topic, the latest ones: what most of them are is what to look at first."""
_GOOD, _EVENT, _BAD = range(3)
_MARKS: Final[Mapping[type, int]] = {Delivery: _EVENT, Rejection: _BAD}
"""By the type of what a record became; what is filtered, passed over, or waits for its schema, has none."""
_STOPPED = "nothing more is read or dead-lettered, and nothing open is committed: "
_OR_ELSE = "and start again; PINSTREAM_DEAD_LETTER_SHARE=1 lets them all become dead letters"
_ADVICE = f"{_STOPPED}correct the mapping {_OR_ELSE}"
_TOO_OLD = f"{_STOPPED}raise PINSTREAM_MAX_EVENT_AGE, or move the group past them (pinstream offsets set), {_OR_ELSE}"
"""No mapping makes an event younger."""


class _Sample:
    """The latest `most` marks, and how many of them are events, and how many bad."""

    __slots__ = ("_marks", "_most", "bad", "events")

    def __init__(self, most: int, marks: bytes = b"") -> None:
        self._most = most
        self._marks = bytearray(marks)
        self.events = self.bad = 0

    def add(self, marks: bytes) -> None:
        """These are the newest, the last one most of all."""
        latest = self._marks
        latest += marks
        gone = max(0, len(latest) - self._most)
        self.events += marks.count(_EVENT) - latest.count(_EVENT, 0, gone)
        self.bad += marks.count(_BAD) - latest.count(_BAD, 0, gone)
        del latest[:gone]

    @property
    def full(self) -> bool:
        """Whether it says anything."""
        return len(self._marks) == self._most


class Guard:
    """Counts verdicts by topic; `tripped` says where too many were bad."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._share = context.policy.dead_letter_share
        self._most = context.policy.dead_letter_sample
        self._on = self._share < 1
        self._read: dict[str, _Sample] = {}
        self._judged: dict[str, _Sample] = {}
        """Topics of which an event was refused: while none was, all are good."""
        self._reasons: dict[str, deque[str]] = {}
        self._reasons_most = max(1, min(_REASONS_MOST, int(self._share * self._most)))
        self._refused_now: Counter[str] = Counter()
        self._passed_now: Counter[str] = Counter()
        self._remind_at = float("-inf")
        self.tripped: GuardStatistics | None = None

    def read(self, topic: str, items: Iterable[Prepared | None]) -> None:
        """Records of a topic became these."""
        if not self._on:
            return
        sample = self._read.get(topic)
        if sample is None:
            sample = self._read[topic] = _Sample(self._most)
        # Without a loop of Python's: this is all that the guard costs while nothing is refused.
        sample.add(bytes(filter(None, map(_MARKS.get, map(type, items)))))
        self._weigh(topic)

    def because(self, topic: str, rejection: Rejection) -> None:
        """This is why a record of the topic would be a dead letter; it is counted elsewhere."""
        if self._on:
            reasons = self._reasons.setdefault(topic, deque(maxlen=self._reasons_most))
            reasons.append(f"{rejection.stage.value} {rejection.code}")

    def refused(self, delivery: Delivery) -> None:
        """The API refused this event for good."""
        if self._on:
            self._refused_now[delivery.span.assignment.tp.topic] += 1

    def passed(self, deliveries: Sequence[Delivery]) -> None:
        """These are delivered, or duplicates."""
        if self._judged or self._refused_now:
            self._passed_now.update(one.span.assignment.tp.topic for one in deliveries)

    def mind(self) -> None:
        """All of an input's verdicts are told: weigh them, and say what there is to say."""
        if self._refused_now or self._passed_now:
            self._judge()
        if self.tripped is None or self._context.now.monotonic < self._remind_at:
            return
        self._remind_at = self._context.now.monotonic + _REMIND_EVERY
        topic, rejected, of, mostly = self.tripped
        self._context.report(
            "error", "dead_letter_guard", topic=topic, share=round(rejected / of, 4), of=of, mostly=mostly,
            advice=_TOO_OLD if mostly == f"{Stage.CONVERT.value} {EXPIRED}" else _ADVICE,
        )  # fmt: skip

    def due(self) -> float | None:
        """When to say once more that intake is stopped."""
        return self._remind_at if self.tripped is not None else None

    def _judge(self) -> None:
        refused, self._refused_now = self._refused_now, Counter()
        passed, self._passed_now = self._passed_now, Counter()
        for topic in {**refused, **passed}:
            sample = self._judged.get(topic)
            if sample is None:
                if not refused[topic]:
                    continue
                sample = self._judged[topic] = _Sample(self._most, bytes(self._most))
            sample.add(_spread(passed[topic], refused[topic]))
            self._weigh(topic)
            if not sample.bad:
                del self._judged[topic]

    def _weigh(self, topic: str) -> None:
        read = self._read.get(topic)
        if read is None or not read.full or self.tripped is not None:
            return
        judged = self._judged.get(topic)
        refused = judged.bad if judged is not None else 0
        rejected = read.bad + read.events * refused // self._most
        if rejected / self._most > self._share:
            [(mostly, _)] = Counter(self._reasons.get(topic, ("unknown",))).most_common(1)
            self.tripped = GuardStatistics(topic, rejected, self._most, mostly)
            self._remind_at = self._context.now.monotonic


def _spread(good: int, bad: int) -> bytes:
    """Marks of events that were judged at one moment: in no order, so the bad ones lie evenly among the others."""
    count = good + bad
    return bytes(_BAD * ((at + 1) * bad // count - at * bad // count) for at in range(count))
