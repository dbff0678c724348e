"""A small group of ``pinstream run`` processes on one topic, the traffic they share, and what the broker was told.

`Members` starts them. Each has a state folder of its own, as on machines of their own, unless `shared` says that all
are on one machine, or `join_as` gives it the name that an earlier one had. They leave on SIGTERM, die, or are frozen
as a test wants; `until_divided` waits until the group has settled on who reads what, which every one of them says by
itself (/status).

`Traffic` produces the made-up shop's records in a thread of its own while that goes on, and knows afterwards what
must have become of each and where it stands in the topic.

`CommitLog` reads what was committed, commit by commit in the order the broker took them and with its time, from the
topic in which the broker keeps it: a commit that went back shows there, however short it lasted.
"""

from __future__ import annotations

import contextlib
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from confluent_kafka import Consumer, KafkaException, Message, Producer
from confluent_kafka import KafkaError as RawError
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from consumer.demo.generator import GeneratedEvent
from consumer.engine.model import Disposition
from tests.end_to_end.api import Api
from tests.end_to_end.processes import THIS, WITHIN, Process, RunningProgram, run_environment, wait_for
from tests.end_to_end.records import Shop, committed_offsets, deliverable, new_group, new_topic, value_of
from tests.support.kafka.harness import Kafka, ask, unique

PARTITIONS = 6
BATCH, CONCURRENCY = 20, 4
IN_FLIGHT = BATCH * CONCURRENCY
"""The most events that one member has in flight, or delivered without a stored key."""

_TICK = 0.05
_LAST_LINES, _LONGEST_LINE = 30, 1000
_COMMITS = "__consumer_offsets"


class Protocol(NamedTuple):
    """How the members of a group agree on who reads which partition."""

    settings: Mapping[str, str]

    @property
    def classic(self) -> bool:
        """Whether members choose the session time-out; with KIP-848 the broker does."""
        return self.settings.get("KAFKA_GROUP_PROTOCOL") != "consumer"


EAGER = Protocol({"KAFKA_PARTITION_ASSIGNMENT_STRATEGY": "range"})
COOPERATIVE = Protocol({"KAFKA_PARTITION_ASSIGNMENT_STRATEGY": "cooperative-sticky"})
KIP_848 = Protocol({"KAFKA_GROUP_PROTOCOL": "consumer"})


class Member(Process):
    """One process of the group."""

    name = ""
    """Each event that it sends says so: see `Api.sent_by`."""

    def get(self, path: str) -> tuple[int, str]:
        """See `Process.get`; if the member has ended, the error says why."""
        assert not self.ended, f"a member ended by itself:\n{self.stderr[-3000:]}"
        return super().get(path)

    def partitions(self) -> frozenset[int]:
        """The partitions that it says it holds."""
        return frozenset(one["partition"] for one in self.status()["partitions"])

    def calls_in_flight(self) -> int:
        """How many of its calls are in flight."""
        return sum(one["in_flight"] for one in self.status()["destination"]["accounts"])

    def delivered(self) -> int:
        """How many events it has delivered so far."""
        delivered: int = self.ledger()["delivered"]
        return delivered

    @property
    def last_words(self) -> str:
        """The end of its stderr, each line cut to a readable length."""
        lines = self.stderr.splitlines()[-_LAST_LINES:]
        return "\n".join(line[:_LONGEST_LINE] for line in lines) or "(nothing)"


class Members:
    """The group. A context manager: at its end all its processes are gone. What a test failed with then says what
    each of them logged last: a failure that is rare can be understood from one time.

    `session` is how many seconds a member may be silent before the others take its partitions over.
    """

    def __init__(
        self,
        kafka: Kafka,
        api: Api,
        folder: Path,
        protocol: Protocol,
        *,
        session: float,
        shared: bool = False,
        partitions: int = PARTITIONS,
        **settings: str,
    ) -> None:
        self.kafka = kafka
        self.partitions = partitions
        self.topic, self.group = new_topic(kafka, partitions), new_group()
        self.shared = shared
        self._api, self._folder = api, folder
        self._settings = {**protocol.settings, **settings}
        if protocol.classic:
            self._settings["KAFKA_SESSION_TIMEOUT_MS"] = str(int(session * 1000))
            self._settings["KAFKA_HEARTBEAT_INTERVAL_MS"] = "300"
        else:
            set_session(kafka, self.group, session)
        self._all: list[Member] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self._all:
            member.__exit__(kind, error, trace)
        if error is not None:
            for number, member in enumerate(self._all):
                error.add_note(f"member-{number} said last:\n{member.last_words}")

    def join(self, count: int, program: RunningProgram = THIS) -> list[Member]:
        """Start `count` new members at once."""
        return [self.join_as(f"member-{len(self._all)}", program) for _ in range(count)]

    def join_as(self, name: str, program: RunningProgram = THIS, **settings: str) -> Member:
        """Start a member with this name, in the folder that an earlier member of the name left."""
        folder = self.folder_of(name)
        settings = {
            **self._settings,
            **settings,
            "PINSTREAM_BATCH_EVENTS": str(BATCH),
            "PINSTREAM_CONCURRENCY": str(CONCURRENCY),
            "PINSTREAM_MAPPING_FILE": str(folder / "mapping.toml"),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mapping.toml").write_text(f'[constants]\npartner_name = "{name}"\n')
        if self.shared:
            settings["PINSTREAM_STATE_DIR"] = str(self._folder / "state")
        env = run_environment(folder, self.kafka, self.topic, self.group, self._api.url, **settings)
        member = Member(folder, "run", env=env, program=program)
        member.name = name
        self._all.append(member)
        return member

    def folder_of(self, name: str) -> Path:
        """The folder of the members with this name."""
        return self._folder / name

    def until_divided(self, *members: Member, spare: int = 0) -> None:
        """Wait until these hold all partitions, each partition once, and every member but `spare` holds some."""

        def divided() -> bool:
            parts = [member.partitions() for member in members]
            none = sum(not part for part in parts)
            return none == spare and sum(map(len, parts)) == len(frozenset().union(*parts)) == self.partitions

        wait_for(divided, f"{len(members)} members with {self.partitions} partitions between them")

    def committed(self) -> list[int]:
        """The committed offset of each partition."""
        return committed_offsets(self.kafka, self.group, self.topic, self.partitions)

    def until_committed(self, expected: list[int]) -> None:
        """Wait until exactly these offsets are committed."""
        wait_for(lambda: self.committed() == expected, f"the commits {expected} of {self.group}")

    def until_moving(self) -> None:
        """Wait until the committed offset of each partition has increased."""
        before = self.committed()

        def moved() -> bool:
            return all(now > then for now, then in zip(self.committed(), before, strict=True))

        wait_for(moved, f"commits of all partitions of {self.group}")


def leave(*members: Member) -> None:
    """Send SIGTERM to all at once; each ends by itself, with exit code 0."""
    for member in members:
        member.send(signal.SIGTERM)
    for member in members:
        assert member.wait() == 0, member.stderr[-3000:]


def until_each(members: Iterable[Member], holds: Callable[[Member], Any], what: str) -> None:
    """Wait until the condition holds for each of them, one after the other."""
    for member in members:
        member.until(partial(holds, member), what)


def until_each_delivers(*members: Member, events: int = 10) -> None:
    """Wait until each of these has delivered `count` more events."""
    goals = [(member, member.delivered() + events) for member in members]
    for member, goal in goals:
        member.until(partial(_has_delivered, member, goal), "deliveries of its own")


def until_quiet(member: Member, seconds: float = 0.3) -> None:
    """Wait until the API has had no call for that long."""
    busy = time.monotonic()

    def quiet() -> bool:
        nonlocal busy
        if member.calls_in_flight():
            busy = time.monotonic()
        return time.monotonic() > busy + seconds

    member.until(quiet, "its calls to come home")


def _has_delivered(member: Member, goal: int) -> bool:
    return member.delivered() >= goal


def set_session(kafka: Kafka, group: str, seconds: float) -> None:
    """Set for how long members of a KIP-848 group may be silent; for others it has no effect."""
    entry = ConfigEntry(
        "consumer.session.timeout.ms",
        str(int(seconds * 1000)),
        incremental_operation=AlterConfigOpType.SET,
    )
    resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=[entry])
    admin = AdminClient({**kafka.config, "log_level": 0})
    ask(lambda: admin.incremental_alter_configs([resource])[resource].result(WITHIN))


class Traffic:
    """The shop's records, `rate` a second, from `__enter__` to `stop`; `burst` adds more at once.

    Each event has an id of its own, so what is accepted twice was sent twice.
    """

    def __init__(
        self,
        kafka: Kafka,
        topic: str,
        *,
        seed: int,
        rate: float,
        partitions: int = PARTITIONS,
    ) -> None:
        self._topic = topic
        self._step = max(1, round(rate * _TICK))
        self._producer = Producer(
            {**kafka.config, "linger.ms": 5, "enable.idempotence": True, "log_level": 0}
        )
        self._generator = Shop(seed, time.time, invalid=0.02)
        self._lock = threading.Lock()
        self._events: list[GeneratedEvent] = []
        self._places: dict[int, tuple[int, int]] = {}
        self._ends = [0] * partitions
        self._failed: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(WITHIN)

    def _run(self) -> None:
        while not self._over.wait(_TICK):
            self.burst(self._step)

    def burst(self, count: int) -> None:
        """Write `count` records at once."""
        with self._lock:
            for one in islice(self._generator, count):
                number, value = len(self._events), value_of(one)
                self._events.append(one)
                self._producer.produce(self._topic, value, one.key, on_delivery=self._stored_as(number))
            self._producer.poll(0)

    def _stored_as(self, number: int) -> Any:
        def stored(error: RawError | None, message: Message) -> None:
            partition, offset = message.partition(), message.offset()
            if error is not None or partition is None or offset is None:
                self._failed.append(str(error))
                return
            self._ends[partition] = max(self._ends[partition], offset + 1)
            self._places[number] = (partition, offset)

        return stored

    def stop(self) -> None:
        """Stop the traffic; when this returns, all records are on the topic."""
        self._over.set()
        self._thread.join(WITHIN)
        assert self._producer.flush(WITHIN) == 0
        assert not self._failed, self._failed[:3]
        assert len(self._places) == len(self._events)

    def places(self) -> dict[str, tuple[int, int]]:
        """Partition and offset of every event that is known to be on the topic."""
        with self._lock:
            self._producer.poll(0)
            found = [(self._events[number].event, place) for number, place in self._places.items()]
        return {event["event_id"]: place for event, place in found if event}

    # What must have become of it; asked after `stop`.

    @property
    def deliverable(self) -> set[str]:
        """The ids of all events that must be accepted."""
        return deliverable(self._events)

    @property
    def broken(self) -> list[bytes]:
        """The values of all records that must be dead letters, sorted."""
        return sorted(value_of(one) for one in self._events if one.expected is Disposition.DEAD_LETTERED)

    @property
    def ends(self) -> list[int]:
        """Per partition, the offset after its last record."""
        return self._ends


class CommitLog:
    """All commits of a group from now on, in the order in which the broker accepted them."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._from = self._ends()

    def _ends(self) -> dict[int, int]:
        """The ends of the partitions of the commits topic; empty before the broker's first commit."""
        consumer = Consumer({**self._kafka.config, "group.id": unique("reader"), "log_level": 0})
        numbers = consumer.list_topics(_COMMITS, timeout=WITHIN).topics[_COMMITS].partitions
        found: dict[int, int] = {}

        def all_reported() -> bool:
            # The broker's own topic is new as well: its partitions may have no leader yet.
            for number in numbers:
                with contextlib.suppress(KafkaException):
                    found[number] = consumer.get_watermark_offsets(RawPartition(_COMMITS, number), WITHIN)[1]
            return len(found) == len(numbers)

        wait_for(all_reported, "where the topic of commits ends")
        consumer.close()
        return found

    def of(self, group: str, topic: str) -> dict[int, list[int]]:
        """For each partition of the topic, the committed offsets in order."""
        return {number: [offset for _, offset in made] for number, made in self.timed(group, topic).items()}

    def timed(self, group: str, topic: str) -> dict[int, list[tuple[float, int]]]:
        """The same, each offset with the time (unix seconds) at which the broker accepted it."""
        found: dict[int, list[tuple[float, int]]] = {}
        for message in self._messages():
            commit = _read_commit(message.key(), message.value())
            if commit is not None and commit[:2] == (group, topic):
                found.setdefault(commit[2], []).append((message.timestamp()[1] / 1000, commit[3]))
        return found

    def _messages(self) -> Iterator[Message]:
        config: dict[str, Any] = {"group.id": unique("reader"), "enable.partition.eof": True, "log_level": 0}
        consumer = Consumer({**self._kafka.config, **config})
        unread = set(self._ends())
        consumer.assign([RawPartition(_COMMITS, number, self._from.get(number, 0)) for number in unread])
        deadline = time.monotonic() + WITHIN
        while unread:
            assert time.monotonic() < deadline, f"{_COMMITS} could not be read to its end"
            for message in consumer.consume(1000, 0.2):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == RawError._PARTITION_EOF:
                    unread.discard(message.partition())
        consumer.close()


def _read_commit(key: str | bytes | None, value: str | bytes | None) -> tuple[str, str, int, int] | None:
    """Group, topic, partition and offset of a record of the commits; None for what is no commit.

    The key: a version (0 and 1 are commits), group, topic, partition. The value: a version, then the offset.
    """
    if not isinstance(key, bytes) or not isinstance(value, bytes) or struct.unpack_from(">h", key)[0] > 1:
        return None
    group, at = _text(key, 2)
    topic, at = _text(key, at)
    (partition,) = struct.unpack_from(">i", key, at)
    (offset,) = struct.unpack_from(">q", value, 2)
    return group, topic, partition, offset


def _text(raw: bytes, at: int) -> tuple[str, int]:
    """A string with its length in front, and where it ends."""
    (length,) = struct.unpack_from(">h", raw, at)
    return raw[at + 2 : at + 2 + length].decode(), at + 2 + length
