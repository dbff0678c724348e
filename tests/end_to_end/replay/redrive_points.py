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

from typing import Any

from consumer.adapters.kafka import transactions
from consumer.commands.dead_letters import marking
from tests.end_to_end.crashes import crashing
from tests.end_to_end.crashes.crashing import Crash, replace

LOT = 10


def marks_in(lot: Any) -> list[tuple[int, str]]:
    """Of a lot's marks the partition, and what it says is done."""
    headers = [(one.partition, dict(one.headers)) for one in lot.records]
    return [(at, named["pinstream.done"].decode()) for at, named in headers if "pinstream.done" in named]


def started(crash: Crash) -> None:
    """After the id is taken over."""

    def make(real: Any) -> Any:
        async def start(self: transactions.TransactionalWriter) -> None:
            await real(self)
            crash.now()

        return start

    replace(transactions.TransactionalWriter, "start", make)


def unmarked(crash: Crash) -> None:
    """Before a lot."""

    def make(real: Any) -> Any:
        def write(self: Any) -> Any:
            crash.now(marks=marks_in(self))
            return real(self)

        return write

    replace(transactions._Lot, "write", make)


def half_written(crash: Crash) -> None:
    """In the middle of a lot, when all before is acknowledged."""

    def make(real: Any) -> Any:
        def send(self: Any, index: int, record: Any) -> None:
            if index == len(self.records) // 2:
                self.producer.flush(10)
                crash.now(marks=marks_in(self), written=index)
            real(self, index, record)

        return send

    replace(transactions._Lot, "_send", make)


def whole(crash: Crash) -> None:
    """Between the last acknowledgement and the commit."""

    def make(real: Any) -> Any:
        def commit(self: Any) -> Any:
            crash.now(marks=marks_in(self))
            return real(self)

        return commit

    replace(transactions._Lot, "_commit", make)


def marked(crash: Crash) -> None:
    """After the commit."""

    def make(real: Any) -> Any:
        def commit(self: Any) -> Any:
            cause = real(self)
            if cause is None:
                crash.now(marks=marks_in(self))
            return cause

        return commit

    replace(transactions._Lot, "_commit", make)


if __name__ == "__main__":
    vars(marking)["LOT_LETTERS"] = LOT
    crashing.POINTS.update({one.__name__: one for one in (started, unmarked, half_written, whole, marked)})
    crashing.main()
