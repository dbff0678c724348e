"""The guard: intake stops before a wrong mapping empties a topic into dead letters.

Theory of operation. Each topic has a sample: one byte, a *mark*, for each of its latest records, in the order in which
they were read. Within a partition that is the order of their offsets. A record gets its place when it is read, and
counts as good. When it is rejected or refused for good, its mark says why. So the time of a verdict does not matter:
in an outage, rejections stand among the good marks of records that still wait, and refusals that arrive late and
together stand among the thousands of records that were found to be duplicates at once. A record that the offset map
passes over is good, too.

Records that the mapping filters have no place: nine unwanted page views must not hide that each checkout is refused. A
record that is filtered only after its schema has come loses its place again. A record that is read again has only its
new place.

The guard trips when among `dead_letter_sample` neighbours more than the share are bad. A verdict may come late, so
``max_open_events / share`` more places are kept. That is as far apart as open events can stand if all of them are bad
and just more than the share.

A guard that has tripped stays tripped. The records that it held back are read again after a restart, and only the
person who corrects the cause knows when to restart.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, compress
from operator import sub
from typing import Final, NamedTuple

from consumer.engine.context import Context
from consumer.engine.figures.statistics import Cause, GuardStatistics
from consumer.engine.model import TRANSFORM_FAILED, TRANSFORM_MISFIT, Filtered, Rejection, Stage
from consumer.engine.reading import NoEvent
from consumer.engine.records.block import Block
from consumer.engine.records.runs import Run

_REMIND_EVERY = 60.0
# For a smaller share the sample is as long as for this one, so that its memory is bounded.
_LEAST_SHARE = 0.1
# Marks: of a good record, and of a place that its record has lost. Those between are bad, each for one reason.
_GOOD, _LEFT = 0, 255
# With lost places, a sample is at most this many times as long as without.
_MAX_LEFT: Final = 16
_IS_BAD: Final = bytes(mark != _GOOD for mark in range(256))
_STOPPED = "nothing more is read or dead-lettered, and nothing open is committed: "
_OR_ELSE = " and start again; PINSTREAM_DEAD_LETTER_SHARE=1 lets them all become dead letters"
# Why records are rejected at a stage, unless the code says more.
_CAUSES: Final = {
    Stage.DECODE: Cause.SCHEMA,
    Stage.CONVERT: Cause.MAPPING,
    Stage.DELIVER: Cause.DESTINATION,
}
_CAUSES_BY_CODE: Final = {
    (Stage.CONVERT, "future_event_time"): Cause.CLOCK,
    (Stage.CONVERT, "expired"): Cause.CLOCK,
    (Stage.CONVERT, TRANSFORM_FAILED): Cause.TRANSFORM,
    (Stage.CONVERT, TRANSFORM_MISFIT): Cause.TRANSFORM,
}

# What the mapping itself makes a dead letter, as after an outage: nothing that intake has to stop for.
_LATE: Final = "late"

# Stage and code, and the number of the mapping's section.
_Reason = tuple[Stage, str, int]


class _Slice(NamedTuple):
    """Records that were read one after the other and have places: their offsets, and the number of the first."""

    partition: int
    offsets: Sequence[int]
    begin: int


class _Sample:
    """Marks of a topic's latest records, numbered in the order in which they were read."""

    __slots__ = ("_first", "_kept", "_left", "_marks", "_maximum", "_read_to", "_slices", "news")

    def __init__(self, maximum: int, kept: int) -> None:
        self._maximum = maximum
        self._kept = kept
        self._marks = bytearray()
        # How many of these are lost places.
        self._left = 0
        # The number of the first mark that is kept.
        self._first = 0
        # Numbers of records whose marks were not weighed yet.
        self.news: list[int] = []
        self._slices: deque[_Slice] = deque()
        # By partition, the last offset that was read.
        self._read_to: dict[int, int] = {}

    def add(self, partition: int, offsets: Sequence[int], filtered: Collection[int]) -> Sequence[int]:
        """Give new records their places, except those at the indexes `filtered`. Return their numbers."""
        # The position went back, or the partition was assigned again.
        if offsets[0] <= self._read_to.get(partition, -1):
            self._forget(partition, offsets[0])
        self._read_to[partition] = offsets[-1]
        marks = self._marks
        begin = self._first + len(marks)
        marks += bytes(len(offsets) - len(filtered))
        numbers: Sequence[int] = range(begin, self._first + len(marks))
        if not filtered:
            # The fast path: without a loop in Python, this is all that the guard costs while no event is refused.
            self._keep(partition, offsets, begin)
        else:
            taken = [index not in filtered for index in range(len(offsets))]
            if numbers:
                self._slices.append(_Slice(partition, array("q", compress(offsets, taken)), begin))
            numbers = array("q", accumulate(taken, initial=begin))
        # Lost places do not count here: records that are read again and again must not push out their neighbours.
        gone = len(marks) - min(self._kept + self._left, _MAX_LEFT * self._kept)
        if gone > 0:
            self._left -= marks.count(_LEFT, 0, gone)
            del marks[:gone]
            self._first += gone
            while self._slices[0].begin + len(self._slices[0].offsets) <= self._first:
                self._slices.popleft()
        return numbers

    def _keep(self, partition: int, offsets: Sequence[int], begin: int) -> None:
        """Remember which numbers these records have, in case their partition is read again from an earlier offset."""
        # The slice outlives the records. Offsets without gaps are a range, which takes next to no memory; a range that
        # continues the one before is joined to it.
        first, after = offsets[0], offsets[-1] + 1
        if after - first != len(offsets):
            self._slices.append(_Slice(partition, offsets, begin))
            return
        if self._slices:
            of, before, number = self._slices[-1]
            if of == partition and type(before) is range and before.stop == first:
                self._slices[-1] = _Slice(partition, range(before.start, after), number)
                return
        self._slices.append(_Slice(partition, range(first, after), begin))

    def _forget(self, partition: int, offset: int) -> None:
        """Take away the places of the partition's records from `offset` on, which are read again."""
        # A record has one place, that of its latest reading: else one bad record that is read again and again would
        # count many times.
        for one in self._slices:
            if one.partition == partition:
                begin = max(one.begin + bisect_left(one.offsets, offset) - self._first, 0)
                end = max(one.begin + len(one.offsets) - self._first, 0)
                self._left += end - begin - self._marks.count(_LEFT, begin, end)
                self._marks[begin:end] = bytes((_LEFT,)) * (end - begin)

    def mark(self, number: int, mark: int) -> None:
        """Enter the verdict on the record with this number."""
        at = number - self._first
        # A verdict does not count if the record's place was pushed out, or lost to a later reading, before it came.
        if at >= 0 and self._marks[at] != _LEFT:
            self._left += mark == _LEFT
            self._marks[at] = mark
            self.news.append(number)

    def worst(self, least: int) -> bytes | None:
        """Return the marks of the window with most bad records; None: no window with new marks has `least` bad."""
        maximum, marks, news = self._maximum, self._marks, self.news
        if not news or len(marks) < maximum:
            return None
        begin, end = min(news) - self._first - maximum + 1, max(news) - self._first + maximum
        around = marks[max(0, begin) : max(0, end)]
        if _LEFT in around:
            # Places without a record are no neighbours, so the window may reach further: look at all marks.
            around = marks.translate(None, bytes((_LEFT,)))
        if len(around) < maximum:
            # Too few records for a share: their marks are weighed when more are read.
            return None
        news.clear()
        bad = around.translate(_IS_BAD)
        if bad.count(1) < least:
            return None
        sums = [0, *accumulate(bad)]
        by_window = [*map(sub, sums[maximum:], sums)]
        worst = max(by_window)
        at = by_window.index(worst)
        return bytes(around[at : at + maximum]) if worst >= least else None


class Guard:
    """Keeps a sample of each topic; `tripped` says where too many were bad."""

    def __init__(self, context: Context) -> None:
        policy = context.policy
        self._context = context
        self._on = policy.dead_letter_share < 1
        self._maximum = policy.dead_letter_sample
        # The least count that is more than the share. Rounding may be off by one either way: 0.29 x 100 is a bit less
        # than 29 to a computer.
        share, about = policy.dead_letter_share, int(policy.dead_letter_share * self._maximum)
        self._least = next(
            n for n in range(max(0, about - 1), self._maximum + 2) if n / self._maximum > share
        )
        self._kept = self._maximum + int(policy.max_open_events / max(_LEAST_SHARE, policy.dead_letter_share))
        self._samples: dict[str, _Sample] = {}
        # Samples with new marks. Kept apart, because there may be thousands of topics, and each input calls `weigh`.
        self._unweighed: dict[str, _Sample] = {}
        self._marks: dict[_Reason, int] = {}
        self._remind_at = float("-inf")
        self.tripped: GuardStatistics | None = None

    def read(self, block: Block, verdicts: Mapping[int, NoEvent]) -> None:
        """Give the records of a new block their places; `verdicts`: by row, why some of them are not events."""
        if not self._on:
            return
        topic = block.assignment.tp.topic
        sample = self._samples.get(topic)
        if sample is None:
            sample = self._samples[topic] = _Sample(self._maximum, self._kept)
        filtered = {index for index, verdict in verdicts.items() if isinstance(verdict, Filtered)}
        block.numbers = sample.add(block.assignment.tp.partition, block.offsets, filtered)

    def judge(self, row: Run, rejection: Rejection | None) -> None:
        """Note that a record of the sample was rejected or refused; None: it turned out to be filtered."""
        if not self._on:
            return
        # The record took a place when it was read; filtered records have none.
        mark = _LEFT
        if rejection is not None and rejection.code != _LATE:
            reason = rejection.stage, rejection.code, row.block.section(row.first)
            # Codes and sections are closed sets. If there are more reasons than marks, the last reasons share one mark.
            mark = self._marks.setdefault(reason, min(len(self._marks) + 1, _LEFT - 1))
        topic = row.block.assignment.tp.topic
        sample = self._unweighed[topic] = self._samples[topic]
        sample.mark(row.block.numbers[row.first], mark)

    def weigh(self) -> None:
        """Trip if too many neighbouring records are bad."""
        for topic, sample in [*self._unweighed.items()]:
            window = sample.worst(self._least)
            if window is not None and self.tripped is None:
                self._trip(topic, window)
            if not sample.news:
                del self._unweighed[topic]

    def check(self) -> None:
        """Weigh the verdicts of one input together; report a guard that has tripped once a minute."""
        self.weigh()
        tripped = self.tripped
        if tripped is None or self._context.now.monotonic < self._remind_at:
            return
        self._remind_at = self._context.now.monotonic + _REMIND_EVERY
        self._context.report(
            "error", "dead_letter_guard", topic=tripped.topic, share=round(tripped.rejected / tripped.of, 4),
            of=tripped.of, cause=tripped.cause.value, mostly=tripped.mostly, section=tripped.section,
            advice=f"{_STOPPED}{tripped.remedy}{_OR_ELSE}",
        )  # fmt: skip

    def due(self) -> float | None:
        """Return when to report again that intake is stopped (monotonic); None: it is not."""
        return self._remind_at if self.tripped is not None else None

    def _trip(self, topic: str, window: bytes) -> None:
        reasons = {mark: reason for reason, mark in self._marks.items()}
        bad = {reasons[mark]: window.count(mark) for mark in sorted({*window} - {_GOOD})}
        causes, codes = Counter[Cause](), dict[Cause, Counter[tuple[Stage, str]]]()
        for (stage, code, _), count in bad.items():
            cause = _CAUSES_BY_CODE.get((stage, code), _CAUSES[stage])
            causes[cause] += count
            codes.setdefault(cause, Counter())[stage, code] += count
        # Named are the cause with most records, its most frequent code, and the section with most records of that code.
        # A code of another cause may be more frequent without being the first to correct.
        [(cause, _)] = causes.most_common(1)
        [((stage, code), _)] = codes[cause].most_common(1)
        *_, section = max((one for one in bad if one[:2] == (stage, code)), key=bad.__getitem__)
        self.tripped = GuardStatistics(
            topic,
            causes.total(),
            self._maximum,
            f"{stage.value} {code}",
            cause,
            self._context.sections[section],
        )
        self._remind_at = self._context.now.monotonic
