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

from collections.abc import Sequence
from dataclasses import dataclass, field
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

    `topic_id`: the topic's id; None: the brokers have none. `records`: as they were fetched. `bodies`: the JSON of each
    event as it was, or would have been, sent; empty if the record became no event, which then has no kind, and whose
    time is 0. `times`: when each event happened (unix seconds).
    """

    topic: str
    partition: int
    topic_id: str | None
    outcome: Outcome
    records: Sequence[Record] = field(repr=False)
    bodies: Sequence[bytes] = field(repr=False)
    kinds: Sequence[Kind | None] = field(repr=False)
    times: Sequence[int] = field(repr=False)
