"""Operations on runs of several blocks at once: join their columns, divide them, move them.

A list of runs is one batch, or the rows of one call or write; its rows are numbered from 0, in order.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter

from consumer.engine.block import TAKEN_OVER, RecordStage, Run
from consumer.engine.reading import KEY_BYTES, Kind


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
        else:  # nearly always: then rows are not looked at one by one
            pairs = {(number, 0): numbers.count(number) for number in set(numbers)}
        for (number, section), count in pairs.items():
            counted[block.kinds[number], section] += count
    return counted


def each_of(runs: Iterable[Run]) -> Iterator[Run]:
    """Yield every row as a run of its own."""
    return (Run(block, index, index + 1) for block, first, end in runs for index in range(first, end))


def rows_of(runs: Iterable[Run]) -> int:
    """Return how many rows the runs have."""
    return sum([end - first for _, first, end in runs])


def keys_of(runs: Iterable[Run]) -> bytes:
    """Return the keys of the runs, one after the other."""
    return b"".join([block.keys[KEY_BYTES * first : KEY_BYTES * end] for block, first, end in runs])


def move_all(runs: Iterable[Run], stage: RecordStage) -> None:
    """Move all runs to a stage; see `Block.move`."""
    for block, first, end in runs:
        block.move(first, end, stage)


def goes_on(row: Run) -> bool:
    """Return True if new work may begin for this row. Otherwise free it: the partition's next owner reads it again."""
    if not row.accepted:
        move_all([row], RecordStage.FREED)
    return row.accepted


def mark_taken_over(runs: Iterable[Run]) -> int:
    """Mark delivered rows whose keys another member has claimed. Return how many were not marked before."""
    newly = 0
    for block, first, end in runs:
        for index in range(first, end):
            newly += not block.marks[index] & TAKEN_OVER
            block.marks[index] |= TAKEN_OVER
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
