"""Merging snapshots: the result adds up, and no counter decreases."""

from __future__ import annotations

import random
from dataclasses import replace
from operator import ge
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from consumer.engine.figures.counters import Counters
from consumer.engine.figures.definitions import copied
from consumer.engine.figures.statistics import Statistics
from consumer.web.metrics import families
from consumer.workers.merging import Merged
from tests.web.building import partition, statistics, totals

PARTS = ("delivered", "duplicate", "filtered", "dead_lettered", "open")
Series = dict[tuple[str, tuple[str, ...]], tuple[str, Any]]


def series(snapshot: Statistics) -> Series:
    """Kind and value of each series of /metrics, by name and labels; none is there twice."""
    found: Series = {}
    for family, of_family in families(Statistics, [snapshot]):
        for labels, value in of_family:
            assert (family.name, labels) not in found
            found[family.name, labels] = (family.kind, value)
    return found


def test_partitions_of_a_worker_that_stands_still_count_where_they_are_now() -> None:
    """The group has given one of its partitions to another worker, which reads the open records again. When it goes on,
    and until it knows of that, no counter decreases, whatever it settles then."""
    merged = Merged()
    before = partition(0, delivered=5, open=3), partition(1, delivered=2, open=1)
    merged.take(1, statistics(*before))
    merged.take(2, statistics(partition(0, open=3)))
    merged.stand_still([1])
    now = merged.statistics()
    assert now.totals == totals(delivered=7, open=4, released=3)
    assert [(one.partition, one.totals.open) for one in now.partitions] == [(0, 3), (1, 1)]
    assert [len(merged.partitions_of(worker)) for worker in (1, 2, 3)] == [1, 1, 0]
    # It goes on, has an answer to a call, and does not know yet.
    merged.take(1, statistics(partition(0, delivered=7, open=1), before[1]))
    merged.stand_still([])
    assert merged.statistics().totals == totals(delivered=9, open=4, released=3)
    merged.take(1, statistics(before[1], ended=totals(delivered=7, released=1)))
    assert merged.statistics().totals == totals(delivered=9, open=4, released=3)
    # Assigned to it again: another assignment.
    again = replace(partition(0, open=2), epoch=7)
    merged.take(2, statistics(ended=totals(released=3)))
    merged.take(1, statistics(again, before[1], ended=totals(delivered=7, released=1)))
    assert merged.statistics().totals == totals(delivered=9, open=3, released=4)


class Shop:
    """A worker whose figures grow as those of a real one."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._partitions = dice.sample(range(6), dice.randint(0, 4))
        self._counts: dict[int, dict[str, Any]] = {one: dict.fromkeys(PARTS, 0) for one in self._partitions}
        self._ages: list[float] = []
        self._counters = Counters()

    def work(self) -> None:
        """Read and settle some records in each partition."""
        for counts in self._counts.values():
            read, settled = self._dice.randint(0, 9), min(counts["open"], self._dice.randint(0, 9))
            counts["open"] += read - settled
            counts[self._dice.choice(PARTS[:-1])] += settled
            self._ages += [self._dice.choice([1, 100, 7000])] * settled
            self._counters.calls += settled
            name = f"name-{self._dice.randint(0, 200)}"
            self._counters.bump(self._counters.delivered_by_name, name, settled)

    def snapshot(self) -> Statistics:
        parts = [partition(number, **counts) for number, counts in self._counts.items()]
        return statistics(*parts, ages=self._ages, counters=copied(self._counters))


@given(seed=st.integers(0, 2**32))
@hypothesis_settings(max_examples=10, deadline=None)
def test_it_adds_up_and_never_goes_back(seed: int) -> None:
    """Workers work, report, die and start again in any order: the ledger always adds up and no counter decreases."""
    dice, merged = random.Random(seed), Merged()
    shops: dict[int, Shop] = {}
    before: Series = {}
    for _ in range(40):
        number = dice.randint(1, 3)
        if dice.random() < 0.2:
            shops.pop(number, None)
            merged.gone(number)
        else:
            shop = shops.setdefault(number, Shop(dice))
            shop.work()
            if dice.random() < 0.7:
                merged.take(number, shop.snapshot())
        merged.stand_still([number for number in (1, 2, 3) if dice.random() < 0.1])
        one = merged.statistics()
        assert one.totals.read == sum(getattr(one.totals, part) for part in PARTS)
        now = series(one)
        for key, (kind, value) in before.items():
            if kind == "counter":
                assert now[key][1] >= value, key
            elif kind == "histogram":
                assert all(map(ge, now[key][1].counts, value.counts)), key
                assert now[key][1].total >= value.total
        before = now
