"""Records that wait for the user's function.

Theory of operation. The engine does not call the function of ``PINSTREAM_TRANSFORM`` itself, because a call may take
any time. So a record waits for the function before it is read, and is not open until then: a drain does not wait for
the record, and the partition's next owner reads it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

from consumer.engine.context import Context
from consumer.engine.figures.statistics import SlowTransform
from consumer.engine.messages import Transform, Transformed, TransformIsSlow
from consumer.engine.model import CommerceEvent, Filtered, Record, Rejection, TopicPartition
from consumer.engine.reading import Decoded, SchemaLearner
from consumer.errors import bug

# Seconds between two log lines about calls that take long: each of a million calls may.
_WARN_EVERY: Final = 10.0


class Transforming:
    """A decoder whose events have gone through the user's function, once their records are `ready`.

    One `Transform` is under way at a time. Its results are kept until their records are read. Without a function every
    record is ready, and `decoder` is used directly.
    """

    def __init__(self, context: Context, decoder: SchemaLearner) -> None:
        self.section_of = decoder.section_of
        self._context = context
        self._decoder = decoder
        self._function = context.policy.transform
        # By the identity of the record, which is kept beside the result so that no other object gets the same identity.
        self._done: dict[int, tuple[Record, CommerceEvent | Filtered | Rejection]] = {}
        # The call under way: its number, the records whose results are still wanted, and the place of each.
        self._number: int | None = None
        self._asked: Sequence[Record] = ()
        self._places: Sequence[tuple[TopicPartition, int]] = ()
        # The record for which the function has not returned for more than a second, and since when.
        self._slow: tuple[TopicPartition, int, float] | None = None
        self._warned = False
        self._warn_at = -math.inf

    @property
    def busy(self) -> bool:
        """True while a call of the function is under way."""
        return self._number is not None

    def decode(self, record: Record, topic: str, partition: int) -> Decoded:
        """Decode a record that is `ready`; see `Decoding`."""
        done = self._done.get(id(record))
        if done is not None:
            return done[1]
        decoded = self._decoder.decode(record, topic, partition)
        if self._function and isinstance(decoded, dict):
            raise bug("a record was read before the user's function had it")
        return decoded

    def ready(self, tp: TopicPartition, records: Sequence[Record | None]) -> int:
        """Return how many of these records of a partition, from the first on, can be read now. For the others the
        function is called."""
        if not self._function:
            return len(records)
        lacking = [
            (at, record)
            for at, record in enumerate(records)
            if record is not None and record.value is not None and id(record) not in self._done
        ]
        if not lacking:
            return len(records)
        if self.busy:
            return lacking[0][0]
        # A record that is not an event has its verdict already, or waits for its schema.
        events = [
            (at, record, one)
            for at, record in lacking
            if isinstance(one := self._decoder.decode(record, *tp), dict)
        ]
        if not events:
            return len(records)
        self._number = self._context.number()
        self._asked = [record for _, record, _ in events]
        self._places = [(tp, record.offset) for _, record, _ in events]
        self._context.emit(Transform(self._number, [event for _, _, event in events]))
        return events[0][0]

    def reported(self, happened: Transformed | TransformIsSlow) -> None:
        """Handle `Transformed` or `TransformIsSlow`."""
        if happened.number != self._number:
            raise bug("the user's function was not asked for this")
        # After a purge no result is wanted.
        for record, result in zip(self._asked, happened.results, strict=False):
            self._done[id(record)] = (record, result)
        self._asked = self._asked[len(happened.results) :]
        if isinstance(happened, TransformIsSlow):
            self._note_slow(happened)
            return
        self._number = None
        if self._slow is not None and self._warned:
            seconds = round(self._context.now.monotonic - self._slow[2], 1)
            self._context.report("info", "transform_returned", function=self._function, seconds=seconds)
        self._slow, self._warned = None, False

    def _note_slow(self, happened: TransformIsSlow) -> None:
        now = self._context.now.monotonic
        tp, offset = self._places[happened.row]
        self._context.counters.slow_transforms += self._slow is None
        self._slow = (tp, offset, now - happened.seconds)
        if now >= self._warn_at:
            self._warned, self._warn_at = True, now + _WARN_EVERY
            self._context.report(
                "warning", "transform_slow", function=self._function, topic=tp.topic, partition=tp.partition,
                offset=offset, seconds=round(happened.seconds, 1),
            )  # fmt: skip

    def read(self, records: Iterable[Record | None]) -> None:
        """Drop the function's results for records that have been read."""
        if self._done:
            for record in records:
                self._done.pop(id(record), None)

    def purge(self) -> None:
        """Forget all results, since some records were revoked. For the others the function is called again."""
        # All results go, whichever records were revoked: purges are rare, and calling the function twice is allowed.
        self._done.clear()
        self._asked = ()

    def slow(self, now: float) -> SlowTransform | None:
        """Return the call that takes long; None: none does."""
        if self._slow is None:
            return None
        tp, offset, since = self._slow
        return SlowTransform(self._function, tp.topic, tp.partition, offset, now - since)
