"""What is done with runs of several blocks at once: take their columns together, divide them, move them.

A list of runs is one batch, or the answer to one call or write; its rows are numbered through, in order.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

from consumer.engine.block import TAKEN_OVER, RecordStage, Run
from consumer.engine.reading import KEY_BYTES, Kind


def times_of(runs: Iterable[Run]) -> array[int]:
    """The times of their events."""
    times = array("q")
    for block, first, end in runs:
        times += block.times[first:end]
    return times


def kinds_of(runs: Iterable[Run]) -> Counter[tuple[Kind, int]]:
    """How many events of each kind and section these are; section 0: none."""
    counted: Counter[tuple[Kind, int]] = Counter()
    for block, first, end in runs:
        numbers = block.kind_numbers[first:end]
        if block.sections:
            pairs: Mapping[tuple[int, int], int] = Counter(
                zip(numbers, block.sections[first:end], strict=True)
            )
        else:  # nearly always: then no row is looked at by itself
            pairs = {(number, 0): numbers.count(number) for number in set(numbers)}
        for (number, section), count in pairs.items():
            counted[block.kinds[number], section] += count
    return counted


def each_of(runs: Iterable[Run]) -> Iterator[Run]:
    """Every row as a run of its own."""
    return (Run(block, index, index + 1) for block, first, end in runs for index in range(first, end))


def rows_of(runs: Iterable[Run]) -> int:
    """How many rows these are."""
    return sum([end - first for _, first, end in runs])


def keys_of(runs: Iterable[Run]) -> bytes:
    """Their keys, one after the other."""
    return b"".join([block.keys[KEY_BYTES * first : KEY_BYTES * end] for block, first, end in runs])


def move_all(runs: Iterable[Run], stage: RecordStage) -> None:
    """Move all of these to a stage; see `Block.move`."""
    for block, first, end in runs:
        block.move(first, end, stage)


def goes_on(row: Run) -> bool:
    """Whether new work may begin for this row. If not, it is freed: it is its next owner's, who reads it again."""
    if not row.accepted:
        move_all([row], RecordStage.FREED)
    return row.accepted


def mark_taken_over(runs: Iterable[Run]) -> int:
    """Another member has claimed these although we delivered them; gives how many were not marked so before."""
    newly = 0
    for block, first, end in runs:
        for index in range(first, end):
            newly += not block.marks[index] & TAKEN_OVER
            block.marks[index] |= TAKEN_OVER
    return newly


def pick(runs: Iterable[Run], chosen: Sequence[object]) -> tuple[list[Run], list[Run]]:
    """Divide them by a flag for each row: those that are chosen, and the others."""
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
    """Those that pass the test (by default: for which new work may begin), and the others."""
    if all(map(test, runs)):
        return runs, []
    return pick(runs, [test(row) for row in each_of(runs)])


def cut(runs: Sequence[Run], rows: int) -> tuple[list[Run], list[Run]]:
    """The first `rows` rows of them, and the others."""
    head: list[Run] = []
    for at, (block, first, end) in enumerate(runs):
        if end - first > rows:
            middle = first + rows
            begun = [Run(block, first, middle)] if rows else []
            return head + begun, [Run(block, middle, end), *runs[at + 1 :]]
        head.append(runs[at])
        rows -= end - first
    return head, []
