"""Things to be written durably, a group at a time, until each is: delivered keys, and dead letters.

Theory of operation. At most one write is under way; what comes meanwhile waits and goes together in the next
one (group commit: the slower the disk, the larger the groups). What a write did not take waits again, behind a
backoff that grows with failures in a row. Nothing leaves an outbox but by being written, or by no longer being
ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

from consumer.engine.interface import DeadLetter
from consumer.engine.policy import Backoff
from consumer.engine.spans import Span
from consumer.errors import InvariantViolation

T = TypeVar("T")


class Letter(NamedTuple):
    """A record on its way to the dead-letter topic."""

    span: Span
    place: int
    letter: DeadLetter

    @property
    def ours(self) -> bool:
        """Whether its record is still ours to settle."""
        return self.span.ours(self.place)


class Outbox(Generic[T]):
    """A queue of items with one write of up to `most` of them under way."""

    def __init__(self, backoff: Backoff, most: int) -> None:
        self._backoff = backoff
        self._most = most
        self._waiting: list[T] = []
        self._writing: list[T] = []
        self._number: int | None = None
        self._failures = 0
        self._not_before = float("-inf")

    def __iter__(self) -> Iterator[T]:
        """All that is not yet known to be written."""
        yield from self._writing
        yield from self._waiting

    def __len__(self) -> int:
        return len(self._writing) + len(self._waiting)

    @property
    def failing(self) -> bool:
        """Whether the latest write failed, and what it held still waits."""
        return self._failures > 0 and len(self) > 0

    @property
    def writing(self) -> int:
        """How many items the write under way holds."""
        return len(self._writing)

    def add(self, items: Sequence[T]) -> None:
        """These are to be written."""
        self._waiting.extend(items)

    def due(self) -> float | None:
        """When the next write may begin; None while nothing waits or one is under way."""
        return self._not_before if self._waiting and self._number is None else None

    def begin(self, number: int, now: float) -> Sequence[T]:
        """The next write, named `number`; empty if none may begin now."""
        due = self.due()
        if due is None or due > now:
            return ()
        self._number = number
        self._writing, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        return self._writing

    def finish(self, number: int, written: Sequence[bool] | None, now: float, jitter: float) -> list[T]:
        """The write `number` came back: per item whether it was written (None: none was). Gives those that were."""
        if number != self._number:
            raise InvariantViolation(
                f"write {number} was answered, {self._number} is under way; please report this"
            )
        items, self._writing, self._number = self._writing, [], None
        if written is not None and len(written) != len(items):
            raise InvariantViolation(
                "a write was answered for more or fewer items than it had; please report this"
            )
        if written is not None and all(written):
            self._failures, self._not_before = 0, float("-inf")
            return items
        flags = written if written is not None else [False] * len(items)
        done = [item for item, flag in zip(items, flags, strict=True) if flag]
        self._waiting = [item for item, flag in zip(items, flags, strict=True) if not flag] + self._waiting
        self._failures += 1
        # From half of the ceiling up: a broken disk or broker is not helped by an immediate second try.
        self._not_before = now + self._backoff.delay(self._failures, 0.5 + jitter / 2)
        return done

    def discard(self, unwanted: Callable[[T], bool]) -> None:
        """Forget waiting items that are no longer ours. What is being written stays until it comes back."""
        self._waiting = [item for item in self._waiting if not unwanted(item)]
