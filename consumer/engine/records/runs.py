"""Operations on runs of records: their columns joined, divided, marked and moved.

Theory of operation. A batch, a call or a write takes a list of runs, of several blocks; its rows are numbered from 0,
in order. Healthy neighbours stay one run throughout, so that what is done to all of them costs next to nothing for
each.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from consumer.engine.model import CURRENCY_BITS, Filtered
from consumer.engine.native import sum_values
from consumer.engine.reading import COUNTED, KEY_BYTES, OFFLINE, UNCLEAR, Kind, NoEvent, currency_of
from consumer.engine.receipts import Outcome, Receipts
from consumer.engine.records.block import ROW_BYTES, Block
from consumer.engine.records.stages import REWOUND, RecordStage
from consumer.errors import bug

# Mark of a delivered row whose key another member has claimed.
TAKEN_OVER: Final = 16
# Marks of events that were sent without a known outcome, and are not counted yet.
_UNCLEAR: Final = re.compile(
    b"[%b]" % b"".join(b"\\x%02x" % mark for mark in range(256) if mark & (UNCLEAR | COUNTED) == UNCLEAR)
)


class Run(NamedTuple):
    """Rows of a block that stand next to each other, from `first` to before `end`."""

    block: Block
    first: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the bodies, with a comma behind each."""
        return self.block.ends[self.end - 1] - self.block.start(self.first)

    @property
    def ours(self) -> bool:
        """True if all rows are still ours to settle, or were settled while they were."""
        # A rewound record is read again as a row of another block, under the same assignment.
        return self.block.assignment.live and self.block.stages.find(REWOUND, self.first, self.end) < 0

    @property
    def accepted(self) -> bool:
        """True if new work may begin for all rows: they are ours, and their partition is not being drained."""
        return self.ours and not self.block.assignment.draining

    def by_account(self) -> list[tuple[str, Run]]:
        """Return the parts of this run whose events go to one account each."""
        block, first, end = self
        accounts = dict.fromkeys(kind.account for kind in block.kinds)
        # The fast path.
        if len(accounts) == 1:
            return [(account, self) for account in accounts]
        parts = [(account, [*rows]) for account, rows in groupby(range(first, end), block.account)]
        return [(account, Run(block, rows[0], rows[-1] + 1)) for account, rows in parts]


def runs_on(block: Block, stage: RecordStage) -> list[Run]:
    """Return all rows of a block that are on this stage, as runs."""
    found = re.finditer(b"%b+" % re.escape(bytes((stage,))), block.stages)
    return [Run(block, run.start(), run.end()) for run in found]


def runs_by_verdict(block: Block, verdicts: Mapping[int, NoEvent]) -> Iterator[tuple[Run, NoEvent]]:
    """Yield the rows that have a verdict, each by itself; but neighbours that are filtered for one reason together."""
    first = end = 0
    before: NoEvent | None = None
    for index, verdict in verdicts.items():
        if index == end and verdict == before and isinstance(verdict, Filtered):
            end += 1
            continue
        if before is not None:
            yield Run(block, first, end), before
        first, end, before = index, index + 1, verdict
    if before is not None:
        yield Run(block, first, end), before


def times_of(runs: Iterable[Run]) -> array[int]:
    """Return the times of the runs' events."""
    times = array("q")
    for block, first, end in runs:
        times += block.times[first:end]
    return times


def kinds_of(runs: Iterable[Run]) -> Counter[tuple[Kind, int]]:
    """Return how many events of each kind and section the runs have; section 0: none."""
    counted: Counter[tuple[Kind, int]] = Counter()
    for block, first, end in runs:
        numbers = block.kind_numbers[first:end]
        if block.sections:
            pairs: Mapping[tuple[int, int], int] = Counter(
                zip(numbers, block.sections[first:end], strict=True)
            )
        else:  # the fast path: then rows are not looked at one by one
            pairs = {(number, 0): numbers.count(number) for number in set(numbers)}
        for (number, section), count in pairs.items():
            counted[block.kinds[number], section] += count
    return counted


def values_of(runs: Iterable[Run]) -> Mapping[tuple[str, str], tuple[int, int]]:
    """Return, by event name and currency, how many of the runs' events have a value, and the sum of these in
    `VALUE_PARTS`."""
    worths: dict[tuple[str, str], tuple[int, int]] = {}
    for block, first, end in runs:
        for key, (count, parts) in sum_values(block.values, block.kind_numbers, first, end).items():
            names = block.kinds[key >> CURRENCY_BITS].name, currency_of(key)
            events, worth = worths.get(names, (0, 0))
            worths[names] = events + count, worth + parts
    return worths


def late_of(runs: Iterable[Run], since: float) -> int:
    """Return how many web and app events of the runs happened before `since` (unix seconds)."""
    return sum(
        time < since and not marks & OFFLINE
        for block, first, end in runs
        for time, marks in zip(block.times[first:end], block.marks[first:end], strict=True)
    )


def each_of(runs: Iterable[Run]) -> Iterator[Run]:
    """Yield every row as a run of its own."""
    return (Run(block, index, index + 1) for block, first, end in runs for index in range(first, end))


def rows_of(runs: Iterable[Run]) -> int:
    """Return how many rows the runs have."""
    return sum([end - first for _, first, end in runs])


def bytes_of(runs: Iterable[Run]) -> int:
    """Return the bytes that the runs' records hold before they are read."""
    return sum(sum(block.sizes[first:end]) + ROW_BYTES * (end - first) for block, first, end in runs)


def keys_of(runs: Iterable[Run]) -> bytes:
    """Return the keys of the runs, one after the other."""
    return b"".join([block.keys[KEY_BYTES * first : KEY_BYTES * end] for block, first, end in runs])


def earlier_keys_of(runs: Sequence[Run]) -> bytes:
    """Return the keys of the runs under the earlier tag, one after the other; empty: none has any."""
    if not any(block.earlier_keys for block, _, _ in runs):
        return b""
    # A block that was read when the earlier tag no longer counted has none: no event has the key of zeros.
    columns = [(block.earlier_keys or bytes(len(block.keys)), first, end) for block, first, end in runs]
    return b"".join([keys[KEY_BYTES * first : KEY_BYTES * end] for keys, first, end in columns])


def receipts_of(run: Run, outcome: Outcome) -> Receipts:
    """Return the receipts of rows that have this outcome."""
    block, first, end = run
    begin, of = block.start(first), block.assignment
    # Copied, because the block drops bodies and moves others while a write is under way.
    with memoryview(block.page) as page:
        text = bytes(page[begin : block.ends[end - 1]])
    records = [record for record in block.records[first:end] if record is not None]
    if len(records) < end - first:
        raise bug("a settled record was asked for again")
    ends, numbers, times = block.ends[first:end], block.kind_numbers[first:end], block.times[first:end]
    return Receipts(*of.tp, of.topic_id, outcome, records, text, begin, ends, block.kinds, numbers, times)


def move_all(runs: Iterable[Run], stage: RecordStage) -> None:
    """Move all runs to a stage; see `Block.move`."""
    for block, first, end in runs:
        block.move(first, end, stage)


def mark_unclear(runs: Iterable[Run]) -> None:
    """Mark events of which a call was sent whose outcome is not known."""
    for block, first, end in runs:
        block.mark(first, end, UNCLEAR)


def count_repeats(runs: Iterable[Run], since: float) -> tuple[int, int]:
    """Mark and count, each once, events whose earlier call has no known outcome, if they are offline events or happened
    before `since` (unix seconds). Return how many there are, and how many of them are offline events."""
    repeats = offline = 0
    # In any attempt: events that were claimed again begin in another batch.
    for block, index, _ in each_of(
        [run for run in runs if _UNCLEAR.search(run.block.marks, run.first, run.end)]
    ):
        marks = block.marks[index]
        if marks & (UNCLEAR | COUNTED) == UNCLEAR and (marks & OFFLINE or block.times[index] < since):
            block.mark(index, index + 1, COUNTED)
            repeats += 1
            offline += marks & OFFLINE
    return repeats, offline


def mark_taken_over(runs: Iterable[Run]) -> int:
    """Mark delivered rows whose keys another member has claimed. Return how many were not marked before."""
    newly = 0
    for block, first, end in runs:
        newly += sum(not marks & TAKEN_OVER for marks in block.marks[first:end])
        block.mark(first, end, TAKEN_OVER)
    return newly


def pick(runs: Iterable[Run], chosen: Sequence[object]) -> tuple[list[Run], list[Run]]:
    """Divide runs by a flag for each row: return the chosen rows and the others."""
    picked: list[Run] = []
    others: list[Run] = []
    at = 0
    for block, first, end in runs:
        flags = [bool(flag) for flag in chosen[at : at + end - first]]
        at += end - first
        begin = first
        for index in range(first + 1, end + 1):
            if index == end or flags[index - first] != flags[begin - first]:
                (picked if flags[begin - first] else others).append(Run(block, begin, index))
                begin = index
    return picked, others


def divide(
    runs: Sequence[Run], test: Callable[[Run], bool] = attrgetter("accepted")
) -> tuple[Sequence[Run], list[Run]]:
    """Divide runs by a test: return the rows that pass it (by default: for which new work may begin) and the others."""
    if all(map(test, runs)):
        return runs, []
    return pick(runs, [test(row) for row in each_of(runs)])


def cut(runs: Sequence[Run], rows: int) -> tuple[list[Run], list[Run]]:
    """Return the first `rows` rows of the runs, and the others."""
    head: list[Run] = []
    for at, (block, first, end) in enumerate(runs):
        if end - first > rows:
            middle = first + rows
            begun = [Run(block, first, middle)] if rows else []
            return head + begun, [Run(block, middle, end), *runs[at + 1 :]]
        head.append(runs[at])
        rows -= end - first
    return head, []
