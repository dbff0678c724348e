"""What a dead process left behind, and whether its successors made of it what the input asks for.

Theory of operation. A `Line` is a topic full of records, a group and a state folder, on which one process after the
other works. Between two of them, when nobody works, three parties know how far it got: the API, what it accepted; the
key store, which of that is remembered; Kafka, what is committed and which dead letters are there. `Line.remains` asks
them. What was accepted and is not remembered is *in limbo*: that, and nothing else, a successor must send again, with
the same ids. So what the end must find is known in advance for every event, wherever the kill came.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import psutil
from confluent_kafka import TopicPartition

from consumer.adapters.key_store import open_key_store
from consumer.engine.model import Position, destination_tag
from consumer.engine.reading import NO_KEY, Keys
from consumer.engine.records import offset_map
from consumer.engine.records.offset_map import OffsetMap
from tests.end_to_end.api import Api
from tests.end_to_end.processes import ACCOUNT, wait_for
from tests.end_to_end.records import PARTITIONS, value_of
from tests.end_to_end.shop import Shop
from tests.support.kafka.harness import Kafka, all_committed, read_all

BATCH, CONCURRENCY = 20, 4
AT_RISK = CONCURRENCY * BATCH
"""The most events that one crash may cause to be sent again."""

Place = tuple[int, int]
"""Partition and offset."""


class Committed(NamedTuple):
    """What the group has committed of a partition."""

    offset: int = 0
    bounds: tuple[int, ...] = ()
    """The map of what is settled above the offset (see `OffsetMap`)."""

    def passes(self, offset: int) -> bool:
        """Whether a process that begins here skips the record at `offset`."""
        known = OffsetMap(self.bounds, None)
        return offset < self.offset or known.settled(offset)


def committed_of(found: TopicPartition) -> Committed:
    """The committed offset of a partition; its metadata must be ours if there is any."""
    if found.offset < 0:
        return Committed()
    said = offset_map.read_map(
        Position(found.topic, found.partition, found.offset, None, found.metadata or "")
    )
    assert (said is offset_map.NOTHING_SAID) == (not found.metadata)
    known = said.settled
    return Committed(found.offset, tuple(known.bounds) if known is not None else ())


class Remains(NamedTuple):
    """What API, key store and Kafka know while no process runs."""

    accepted: Counter[str]
    """How often the API accepted each event id."""
    stored: frozenset[str]
    """Those ids whose keys the key store holds."""
    keys: int
    """How many keys the key store holds."""
    letters: Counter[Place]
    """How many dead letters there are of each record."""
    committed: list[Committed]
    """By partition."""

    @property
    def limbo(self) -> frozenset[str]:
        """Ids that were accepted and whose keys are not stored."""
        return frozenset(self.accepted) - self.stored

    def read_past(self, place: Place) -> bool:
        """Whether the record there counts as settled for the next process, which does not read it again."""
        return self.committed[place[0]].passes(place[1])


class Line(Shop):
    """A topic full of records, a group and a state folder. `shares` are the generator's."""

    def __init__(
        self,
        kafka: Kafka,
        api: Api,
        folder: Path,
        count: int,
        *,
        seed: int,
        settings: Mapping[str, str] | None = None,
        **shares: float,
    ) -> None:
        common = {"PINSTREAM_BATCH_EVENTS": str(BATCH), "PINSTREAM_CONCURRENCY": str(CONCURRENCY)}
        super().__init__(kafka, api, folder, partitions=PARTITIONS, **{**common, **(settings or {})})
        self.at_death: Callable[[Remains], object] = lambda remains: None
        """What a test looks at while no process runs."""
        self.generator = self.generate(count, seed=seed, **shares)
        self.expected = self.deliverable

    @cached_property
    def values(self) -> dict[Place, bytes]:
        """The value at each place."""
        messages = read_all(self.kafka, self.topic, len(self.events))
        return {(one.partition() or 0, one.offset() or 0): one.value() or b"" for one in messages}

    @cached_property
    def places(self) -> dict[Place, str]:
        """For each record that must be delivered, or is a duplicate of one, its event id."""
        ids = {value_of(one): one.event["event_id"] for one in self.events if one.event}
        return {place: ids[value] for place, value in self.values.items() if ids.get(value) in self.expected}

    @cached_property
    def broken_places(self) -> set[Place]:
        """The places of records that must become dead letters."""
        return {place for place, value in self.values.items() if value in self.broken}

    @property
    def done(self) -> bool:
        """Whether all records are committed."""
        return self.committed == len(self.events)

    def remains(self) -> Remains:
        """Ask all three, after the API has read everything that the dead process sent."""
        until_heard(self.api)
        accepted = self.api.accepted()
        to_it = Keys(destination_tag(self.api.url, test_mode=False))
        keys = {
            event["event_id"]: to_it.of(ACCOUNT, event["event_name"], event["event_id"])
            for event in self.api.events
        }
        found, total = look_up(self.folder / "state" / "keys", list(keys.values()))
        stored = frozenset(name for name, here in zip(keys, found, strict=True) if here)
        assert stored <= set(accepted), "a key was stored of what the API never accepted"
        letters = Counter((int(one["partition"]), int(one["offset"])) for _, one in self.letters)
        # Last, so that the broker has long had whatever commit was on its way.
        remains = Remains(accepted, stored, total, letters, self.commits())
        self._check_settled(remains)
        return remains

    def commits(self) -> list[Committed]:
        """What the group has committed, by partition."""
        found = all_committed(self.kafka, self.group, self.topic, range(PARTITIONS))
        return [committed_of(one) for one in found]

    def passed_over(self, remains: Remains) -> set[Place]:
        """The records that no later process reads."""
        return {place for place in self.values if remains.read_past(place)}

    def _check_settled(self, remains: Remains) -> None:
        """Every record that is skipped is delivered with a stored key, or is on the dead-letter topic."""
        passed = self.passed_over(remains)
        lost = {self.places[place] for place in passed & self.places.keys()} - remains.stored
        assert not lost, f"passed over, and not (known to be) delivered: {lost}"
        unwritten = passed & self.broken_places - remains.letters.keys()
        assert not unwritten, f"passed over, and no dead letter is there: {unwritten}"

    def check_all_is_there(self) -> Remains:
        """Check the final state against the input: every event, dead letter, key and offset."""
        end = self.remains()
        assert set(end.accepted) == self.expected == end.stored
        assert end.keys == len(self.expected)
        assert self.api.counts().value_sum == self.generator.value_sum
        assert set(end.letters) == self.broken_places
        assert self.passed_over(end) == self.values.keys()
        return end


def twice(accepted: Counter[str]) -> set[str]:
    """The ids that were accepted twice; none may be accepted more often."""
    assert max(accepted.values()) <= 2
    return {name for name, times in accepted.items() if times == 2}


def until_heard(api: Api) -> None:
    """Wait until the API has read all that dead processes sent: until it has closed their connections.

    A dead process's bytes are in the API's sockets when it has ended, and are read before the end of the stream is.
    """
    port = urlsplit(api.url).port

    def gone() -> bool:
        ours = psutil.Process().net_connections("tcp")
        return not any(one.laddr.port == port and one.raddr for one in ours)

    wait_for(gone, "the end of the dead process's connections")


def look_up(folder: Path, keys: Collection[bytes]) -> tuple[list[bool], int]:
    """For each key, whether the store that a dead process left holds it; and the number of all its keys."""

    async def read() -> tuple[list[bool], int]:
        store = open_key_store(f"disk:{folder}", window=48 * 3600.0, max_bytes=2**30)
        try:
            found = await store.look_up(b"".join(keys) + NO_KEY, time.time())
            return [bool(known) for known in found[:-1]], store.statistics().keys
        finally:
            await store.close()

    return asyncio.run(read())
