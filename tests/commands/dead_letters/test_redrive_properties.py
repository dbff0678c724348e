"""Whatever letters there are and wherever it is killed, a redrive delivers each once, and none waits twice."""

from __future__ import annotations

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from consumer.commands.dead_letters.options import Filters
from consumer.engine.model import Record
from tests.commands.dead_letters.fakes import DEAD, FEWER, Killed, Topics, Transactions
from tests.commands.dead_letters.test_choosing import dry_run_of
from tests.commands.dead_letters.test_marking import dead, dies_at, marked, position, redrive
from tests.service.virtual_time import run


def drawn_topics(data: st.DataObject) -> Topics:
    """Return a topic with letters of all kinds, and other records between them."""
    where = Topics(orders=data.draw(st.integers(1, 3)))
    where.partitions[DEAD] = data.draw(st.integers(1, 3))
    where.chunk = data.draw(st.integers(1, 5))
    for number in range(data.draw(st.integers(0, 25))):
        kind = data.draw(
            st.sampled_from(["letter", "letter", "letter", "tripped", "omitted", "junk", "foreign"])
        )
        partition = data.draw(st.integers(0, 2))
        code = data.draw(st.sampled_from(["expired", "unknown_currency"]))
        if kind == "junk":
            where.append(DEAD, partition % where.partitions[DEAD], b"k", b"junk")
        else:
            where.bury(
                number,
                partition=partition,
                code=code,
                on=DEAD,
                origin="foreign" if kind == "foreign" else "orders",
                headers=(("pinstream.trips", b"500"),) if kind == "tripped" else (),
                omitted=("value",) if kind == "omitted" else (),
                offset=10_000 + number,
            )
    return where


def drawn_options(data: st.DataObject) -> dict[str, Any]:
    """Return drawn filters and a bound."""
    codes = data.draw(st.sampled_from([frozenset(), frozenset({"expired"})]))
    return {"filters": Filters(codes=codes), "maximum": data.draw(st.none() | st.integers(1, 8))}


class Destination:
    """The delivered records and the key store, which both outlive a kill."""

    def __init__(self) -> None:
        self.sent: Counter[bytes | None] = Counter()
        self.keys: set[bytes | None] = set()

    def dies(self, record: Record) -> bool:
        """Return whether this record dies again."""
        return record.value is None or record.value.endswith((b"0", b"3", b"7"))

    def deliver(self, record: Record) -> None:
        """Send it unless its key is known, and store the key before anything is marked, as the service does."""
        self.sent[record.value] += record.value not in self.keys
        self.keys.add(record.value)


async def redriven(where: Topics, writer: Transactions, there: Destination, data: Any, **changes: Any) -> Any:
    """Run one redrive to its end, with commits whenever the data says so. Return its outcome."""
    lot = data.draw(st.integers(1, 5))
    found, letters, outcome = redrive(where, writer, lot=lot, max_trips=100, **changes)
    await letters.begin()
    handed: dict[int, list[int]] = defaultdict(list)
    while not found.done:
        for chunk in await found.fetch(1000, 0.0):
            handed[chunk.partition] += [record.offset for record in chunk.records]
            again = [dead(chunk, record) for record in chunk.records if there.dies(record)]
            while again:
                lot = data.draw(st.integers(1, len(again)))
                await found.store(again[:lot])
                again = again[lot:]
            for record in chunk.records:
                if not there.dies(record):
                    there.deliver(record)
            if data.draw(st.booleans()):
                await found.commit([position(at, all_, set(all_)) for at, all_ in handed.items()])
    await found.close(1.0, [position(at, all_, set(all_)) for at, all_ in handed.items()])
    return outcome


def letters_in(log: Iterable[Record]) -> Iterator[Record]:
    """Yield the drawn letters that can be redriven."""
    for record in log:
        own = ("pinstream.topic", b"orders") in record.headers
        if own and ("pinstream.trips", b"500") not in record.headers and record.value is not None:
            yield record


@FEWER
@given(st.data())
def test_a_dry_run_says_what_would_be(data: st.DataObject) -> None:
    """A dry run reports the numbers and notes that the redrive after it has."""
    where, changes = drawn_topics(data), drawn_options(data)
    said = dry_run_of(where, max_trips=100, **changes)
    did = run(redriven(where, Transactions(where), Destination(), data, **changes))
    if changes["maximum"] is None:
        assert (said.tallies, said.notes) == (did.tallies, did.notes)
    else:  # a redrive stops reading after `maximum` letters, so it counts fewer of the others
        [found], [expected] = did.tallies.values(), said.tallies.values()
        names = ("matched", "done_before", "redriven")
        assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]


@FEWER
@given(st.data())
def test_killed_anywhere_and_run_again_each_is_delivered_once(data: st.DataObject) -> None:
    """Of each that dies again one letter waits, and all others are marked."""
    where, there = drawn_topics(data), Destination()
    letters = [one for (topic, _), log in where.logs.items() if topic == DEAD for one in letters_in(log)]
    for _ in range(data.draw(st.integers(0, 6))):
        writer = Transactions(where)
        writer.before = dies_at(data.draw(st.integers(0, 4)))
        writer.after = dies_at(data.draw(st.integers(0, 4)))
        with contextlib.suppress(Killed):
            run(redriven(where, writer, there, data, **drawn_options(data)))
    everything = {"filters": Filters(), "maximum": None}
    run(redriven(where, Transactions(where), there, data, **everything))
    assert there.sent == Counter(one.value for one in letters if not there.dies(one))
    done = {partition: marked(where, partition) for partition in range(where.partitions[DEAD])}
    waiting = [
        one.value
        for (topic, partition), log in where.logs.items()
        for one in letters_in(log if topic == DEAD else ())
        if one.offset not in done[partition]
    ]
    assert Counter(waiting) == Counter(one.value for one in letters if there.dies(one))
