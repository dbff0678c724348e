"""``python -m tests.end_to_end.replay.redrive_points POINT [-n N] … dead-letters redrive``: it kills itself.

As `crashing`, with lots of `LOT` letters so that there are many of them, and with points of a redrive beside those on
the way to the API (``unsent`` to ``stored``):

============  ================================================================================================
started       the transactional id is ours; nothing is read
unmarked      a lot (marks, and letters that died again) is to be written; its transaction has not begun
half_written  half of a lot is acknowledged by the broker
whole         all of a lot is acknowledged; the commit is not sent
marked        the broker has committed a lot; we have not noted it
============  ================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from consumer.adapters.kafka.letters import NewRecord
from consumer.adapters.kafka.producers import TransactionalWriter
from consumer.commands.dead_letters import redrive
from tests.end_to_end.crashes import crashing
from tests.end_to_end.crashes.crashing import Crash, replace

LOT = 10


def marks_in(records: Sequence[NewRecord]) -> list[tuple[int, str]]:
    """The partition of a lot's marks, and which letters they mark as done."""
    headers: list[tuple[int, dict[str, Any]]] = [(one.partition, dict(one.headers)) for one in records]
    return [(at, named["pinstream.done"].decode()) for at, named in headers if "pinstream.done" in named]


def started(crash: Crash) -> None:
    """After the transactional id has been taken over."""

    def make(real: Any) -> Any:
        async def start(self: TransactionalWriter) -> None:
            await real(self)
            crash.now()

        return start

    replace(TransactionalWriter, "start", make)


class Lot(tuple[NewRecord, ...]):
    """A lot, which is sent record by record; `middle` is called before the record in its middle."""

    middle: Callable[[int], None]

    def __iter__(self) -> Iterator[NewRecord]:
        for index, record in enumerate(super().__iter__()):
            if index == len(self) // 2:
                self.middle(index)
            yield record


def around_lots(instead: Callable[[Any, TransactionalWriter, Lot, bool], Any]) -> None:
    """Call `instead` with the real method for each transaction."""

    def make(real: Any) -> Any:
        def attempt(self: TransactionalWriter, records: Sequence[NewRecord], one_by_one: bool) -> Any:
            lot = Lot(records)
            lot.middle = lambda index: None
            return instead(real, self, lot, one_by_one)

        return attempt

    replace(TransactionalWriter, "_try", make)


def unmarked(crash: Crash) -> None:
    """Before a lot's transaction."""

    def attempt(real: Any, writer: TransactionalWriter, lot: Lot, one_by_one: bool) -> Any:
        crash.now(marks=marks_in(lot))
        return real(writer, lot, one_by_one)

    around_lots(attempt)


def half_written(crash: Crash) -> None:
    """In the middle of a lot, when everything before is acknowledged."""

    def attempt(real: Any, writer: TransactionalWriter, lot: Lot, one_by_one: bool) -> Any:
        marks = marks_in(lot)

        def middle(index: int) -> None:
            writer._producer.flush(10)
            crash.now(marks=marks, written=index)

        lot.middle = middle
        return real(writer, lot, one_by_one)

    around_lots(attempt)


def whole(crash: Crash) -> None:
    """Between the last acknowledgement and the commit."""

    def attempt(real: Any, writer: TransactionalWriter, lot: Lot, one_by_one: bool) -> Any:
        marks, commit = marks_in(lot), writer._commit

        def crashing_commit() -> Any:
            crash.now(marks=marks)
            return commit()

        vars(writer)["_commit"] = crashing_commit
        try:
            return real(writer, lot, one_by_one)
        finally:
            del vars(writer)["_commit"]

    around_lots(attempt)


def marked(crash: Crash) -> None:
    """After the commit."""

    def attempt(real: Any, writer: TransactionalWriter, lot: Lot, one_by_one: bool) -> Any:
        failure = real(writer, lot, one_by_one)
        if failure is None:
            crash.now(marks=marks_in(lot))
        return failure

    around_lots(attempt)


if __name__ == "__main__":
    vars(redrive)["LOT_LETTERS"] = LOT
    crashing.POINTS.update({one.__name__: one for one in (started, unmarked, half_written, whole, marked)})
    crashing.main()
