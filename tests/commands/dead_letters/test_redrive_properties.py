"""Whatever letters there are and wherever it is killed: a redrive puts each back once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka.letters import Filters
from consumer.commands.dead_letters import redrive as module
from tests.commands.dead_letters.fakes import Killed, Topics, Transactions
from tests.commands.dead_letters.test_redrive import (
    DEAD,
    redriven,
    tally,
)
from tests.engine.building import PROPERTY


@PROPERTY
@given(st.data())
def test_a_dry_run_says_what_would_be_and_writes_nothing(data: st.DataObject) -> None:
    """The same numbers as the redrive after it."""
    where = drawn_topics(data)
    changes = drawn_options(data)
    before = {key: list(log) for key, log in where.logs.items()}
    said = redriven(where, dry_run=True, **changes)
    assert {key: list(log) for key, log in where.logs.items() if log} == {
        k: v for k, v in before.items() if v
    }
    did = redriven(where, **changes)
    assert said.tallies == did.tallies
    assert said.notes == did.notes


def drawn_topics(data: st.DataObject) -> Topics:
    """Letters of all kinds, and other records between them."""
    partitions = data.draw(st.integers(1, 3))
    where = Topics(orders=partitions)
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
                headers=(("pinstream.trips", b"5"),) if kind == "tripped" else (),
                left_out=("value",) if kind == "omitted" else (),
                offset=10_000 + number,
            )
    return where


def drawn_options(data: st.DataObject) -> dict[str, Any]:
    """Filters and bounds."""
    codes = data.draw(st.sampled_from([frozenset(), frozenset({"expired"})]))
    return {"filters": Filters(codes=codes), "most": data.draw(st.none() | st.integers(1, 8))}


@PROPERTY
@given(st.data())
def test_killed_anywhere_and_run_again_each_goes_back_once(data: st.DataObject) -> None:
    """Before or after any lot, with any filters, any number of times: in the end all are back, each once."""
    where = drawn_topics(data)
    expected = expected_back(where)
    lots = module.LOT_LETTERS
    module.LOT_LETTERS = data.draw(st.integers(1, 6))
    try:
        for _ in range(data.draw(st.integers(0, 6))):
            writer = Transactions(where)
            writer.before = dies_at(data.draw(st.integers(0, 4)))
            writer.after = dies_at(data.draw(st.integers(0, 4)))
            writer.refuses = drawn_refusal(data)
            try:
                redriven(where, writer=writer, **drawn_options(data))
            except Killed:
                continue
        last = tally(redriven(where))
    finally:
        module.LOT_LETTERS = lots
    assert Counter(where.values("orders")) == Counter(expected)
    assert last.left == last.refused == 0
    assert tally(redriven(where)).done_before == len(expected)


def expected_back(where: Topics) -> list[bytes | None]:
    """Of drawn letters those that can go back."""
    logs = [log for (topic, _), log in where.logs.items() if topic == DEAD]
    found: list[bytes | None] = []
    for record in (one for log in logs for one in log):
        headers = dict(record.headers)
        if (
            headers.get("pinstream.topic") == b"orders"
            and record.value is not None
            and "pinstream.trips" not in headers
        ):
            found.append(record.value)
    return found


def dies_at(lot: int) -> Callable[[int], None]:
    """Killed when it comes to this lot."""

    def die(at: int) -> None:
        if at == lot:
            raise Killed

    return die


def drawn_refusal(data: st.DataObject) -> Callable[[Any], bool]:
    """What the origin does not take for now."""
    refused = data.draw(st.sampled_from([b"", b"v1", b"v7"]))
    return lambda record: record.topic == "orders" and record.value == refused
