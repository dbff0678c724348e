"""``python -m tests.end_to_end.replay.redrive_points POINT [-n N] … dead-letters redrive``: a redrive killing itself.

As `crashing`, with the points of a redrive, and lots of `LOT` letters so that there are many of them:

============  ================================================================================================
started       the transactional id is ours; nothing is read
unsent        a lot is to be written; its transaction has not begun
half_written  half of a lot is acknowledged by the broker
whole         all of a lot, its mark too, is acknowledged; the commit is not sent
committed     the broker has committed a lot; we have not noted it
never         kills nothing
============  ================================================================================================
"""

from __future__ import annotations

from typing import Any

from consumer.adapters.kafka import redrive
from consumer.commands.dead_letters import redrive as app
from tests.end_to_end.crashes import crashing
from tests.end_to_end.crashes.crashing import Crash, replace

LOT = 10


def started(crash: Crash) -> None:
    """After the id is taken over."""

    def make(real: Any) -> Any:
        def start(self: redrive.Redriver) -> None:
            real(self)
            crash.now()

        return start

    replace(redrive.Redriver, "_start", make)


def unsent(crash: Crash) -> None:
    """Before a lot."""

    def make(real: Any) -> Any:
        def write(self: Any) -> Any:
            crash.now(letters=len(self._records) - 1)
            return real(self)

        return write

    replace(redrive._Lot, "write", make)


def half_written(crash: Crash) -> None:
    """In the middle of a lot, when all before is acknowledged."""

    def make(real: Any) -> Any:
        def send(self: Any, index: int, record: Any) -> None:
            if index == len(self._records) // 2:
                self._producer.flush(10)
                crash.now(written=index)
            real(self, index, record)

        return send

    replace(redrive._Lot, "_send", make)


def whole(crash: Crash) -> None:
    """Between the last acknowledgement and the commit."""

    def make(real: Any) -> Any:
        def commit(self: Any) -> Any:
            crash.now(letters=len(self._records) - 1)
            return real(self)

        return commit

    replace(redrive._Lot, "_commit", make)


def committed(crash: Crash) -> None:
    """After the commit."""

    def make(real: Any) -> Any:
        def commit(self: Any) -> Any:
            cause = real(self)
            if cause is None:
                crash.now(letters=len(self._records) - 1)
            return cause

        return commit

    replace(redrive._Lot, "_commit", make)


def never(_: Crash) -> None:
    """For whoever is killed from outside."""


REDRIVE_POINTS = {one.__name__: one for one in (started, unsent, half_written, whole, committed, never)}

if __name__ == "__main__":
    app.LOT_LETTERS = LOT
    crashing.POINTS.update(REDRIVE_POINTS)
    crashing.main()
