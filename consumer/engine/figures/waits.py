"""What open records wait for, and how a snapshot describes the oldest of them.

Theory of operation. An open record is on a stage, and the stage says what it waits for (`survey.describe_open`). Each
wait has a name, for programs, and words, for people: they stand here, once, and the page shows them as they are. A
snapshot describes the oldest open record of each partition, because no offset is committed past it.
"""

from __future__ import annotations

import math
from enum import Enum

from consumer.engine.figures.definitions import derived, figure, snapshot

# Partitions whose oldest open record a snapshot describes.
MAX_OLDEST = 20


class WaitsFor(Enum):
    """What an open record waits for: the name in /status, and the words of the page after "waits for"."""

    SCHEMA = "schema", "its schema, which the registry has not returned yet"
    CLOCK = "clock", "its event time, which is in the future, or Pinterest to confirm the current time"
    ROOM = "room", "room: the limit of open records is reached"
    KEY_STORE = "key_store", "the key store to say whether it was delivered before, or to store that it is"
    MEMBER = "member", "another member, which has the same event in flight"
    BATCH = "batch", "its batch to fill"
    QUOTA = "quota", "the call quota: calls are paced or throttled"
    RETRY = "retry", "the next attempt, after an error"
    PLATFORM = "platform", "Pinterest's answer to the call it was sent in, or to those before it"
    HALT = "halt", "Pinterest to accept this account again"
    DUPLICATE = "duplicate", "an open event with the same key"
    DEAD_LETTER = "dead_letter", "the dead-letter topic to confirm the write"
    RECEIPT = "receipt", "the receipts topic to confirm the write of its receipt"
    GUARD = "guard", "the cause that stopped intake to be corrected"

    words: str

    def __new__(cls, value: str, words: str) -> WaitsFor:
        """Make a member: its value is the name in /status."""
        made = object.__new__(cls)
        made._value_, made.words = value, words
        return made


@snapshot
class OldestOpen:
    """The oldest record that is open."""

    topic: str = figure()
    partition: int = figure()
    offset: int = figure()
    age: float | None = figure("Its age, by its Kafka timestamp.", path="age_seconds")
    waits_for: WaitsFor = figure("What it waits for: see below.")
    account: str | None = figure("Its ad account, as far as known.")

    @derived("waits_in_words")
    def waits_in_words(self) -> str:
        """The same in words."""
        return self.waits_for.words


def oldest_first(one: OldestOpen) -> float:
    """Return the key by which open records are sorted: one without a timestamp is the oldest only if none has one."""
    return math.inf if one.age is None else -one.age
