"""What a receipt says: what became of a record, decided when, by which call.

Theory of operation. With ``PINSTREAM_RECEIPTS_TOPIC`` each outcome has a receipt, a record on that topic. It is
acknowledged *before* the event's key is stored and before the record settles. A crash between the two leaves a receipt
of a record that is read again: then a second receipt follows, at worst of another outcome. The other way round a crash
could leave a delivered order whose only receipt says duplicate.

The engine says what became of which records (`Receipts`), as columns of neighbours that have one outcome. What else a
receipt holds (group, destination, digest of the mapping, member, who asked for it) is the same for all receipts of a
process, and is the writer's to add (`consumer.ports.ReceiptWriter`).

No field is shown by a repr that holds an event or a part of it, since a repr may be logged.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from consumer.engine.model import Disposition, Record
from consumer.engine.reading import Kind


class Call(NamedTuple):
    """The call whose answer decided. `answered_ms`: milliseconds since 1970."""

    request_id: str | None
    """None: the platform gave none."""
    status: int
    answered_ms: int


class Outcome(NamedTuple):
    """What became of a record, or of many in the same moment. `at_ms`: when that was decided (milliseconds since
    1970)."""

    disposition: Disposition
    at_ms: int
    code: str | None = None
    """Why it was filtered or dead-lettered; None: it was not."""
    attempts: int = 0
    """Calls made with the event."""
    call: Call | None = None
    """The one that decided; None: none did."""

    @property
    def is_delivered(self) -> bool:
        """True if the platform has processed the event."""
        return self.disposition is Disposition.DELIVERED


@dataclass(frozen=True, slots=True)
class Receipts:
    """Receipts of neighbours in a partition that have one outcome; a row for each record, in all columns.

    `topic_id`: the topic's id; None: the brokers have none. `records`: as they were fetched. `text`: the JSON of each
    event as it was, or would have been, sent, with a comma behind each; a record that became no event has not even
    that, no kind, and 0 as its time. `ends`: where those of each row end, counted from `begin` before the first.
    `kind_numbers`: which of `kinds_there` each event is of. `times`: when each event happened (unix seconds).
    """

    topic: str
    partition: int
    topic_id: str | None
    outcome: Outcome
    records: Sequence[Record] = field(repr=False)
    text: bytes = field(repr=False)
    begin: int
    ends: array[int] = field(repr=False)
    kinds_there: Sequence[Kind] = field(repr=False)
    kind_numbers: Sequence[int] = field(repr=False)
    times: array[int] = field(repr=False)

    @property
    def bodies(self) -> list[bytes]:
        """The JSON of each event; empty if the record is none."""
        bounds = pairwise(end - self.begin for end in (self.begin, *self.ends))
        return [self.text[start : end - 1] if end > start else b"" for start, end in bounds]

    @property
    def kinds(self) -> list[Kind | None]:
        """The kind of each event; None if the record is none."""
        of_rows = zip(self.kind_numbers, self.bodies, strict=True)
        return [self.kinds_there[number] if body else None for number, body in of_rows]
