"""The brokers answer, and the group gets no further: it has no coordinator, or nobody answers about its offsets or
takes its last commit.

The member waits, names the cause, can be stopped at once, and goes on by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Self

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.end_to_end.api import Api, Loop
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import generated, new_group, new_topic, write_generated
from tests.end_to_end.shop import Shop
from tests.support.kafka.broker import RealBroker, free_ports
from tests.support.kafka.harness import Kafka
from tests.support.switches import switched

EVENTS = 40
AT_ONCE = 5.0
"""Seconds for a stop when there is nothing to commit, on a busy machine; the grace is 25."""
QUESTION = 5.0
"""Seconds of a question where to start, at most; a stop waits for its end."""
OFFSETS = "__consumer_offsets"
_OFFSET_COMMIT, _OFFSET_FETCH = 8, 9
"""The API keys of a commit, and of the question for committed offsets."""

Started = Callable[[RealBroker], AbstractContextManager[RealBroker]]
pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

PROTOCOLS = {"classic": {"KAFKA_SESSION_TIMEOUT_MS": "6000"}, "consumer": {}}
"""By group protocol, its settings. (Of the second kind the broker decides on the session.)"""


class Line:
    """A topic, and members of two groups that read it under one protocol: one to be stopped while it waits."""

    def __init__(self, stack: ExitStack, kafka: Kafka, api: Api, folder: Path, protocol: str) -> None:
        self._kafka, self._api, self._topic = kafka, api, new_topic(kafka, 2)
        settings = {
            **PROTOCOLS[protocol],
            "KAFKA_GROUP_PROTOCOL": protocol,
            "KAFKA_AUTO_OFFSET_RESET": "earliest",
        }
        self.stopped, self.lasting = (
            stack.enter_context(
                Process(
                    own, "run", env=run_environment(own, kafka, self._topic, new_group(), api.url, **settings)
                )
            )
            for own in (folder / f"{protocol}-stopped", folder / protocol)
        )

    def until(self, condition: Callable[[Process], object], what: str) -> None:
        """Wait until the condition holds for the one that lasts."""
        self.lasting.until(lambda: condition(self.lasting), what)

    def ends_at_once(self, seconds: float) -> None:
        """One is stopped, with 0."""
        code, took = self.stopped.stop()
        assert (code, took < seconds) == (0, True), took
        assert "Traceback" not in self.stopped.stderr

    def delivers(self) -> None:
        """Write records; the other one delivers them, and is ready."""
        before = self._api.counts().accepted_events
        _, events = generated(EVENTS, seed=before, duplicates=0.0, invalid=0.0)
        write_generated(self._kafka, self._topic, events)
        self.until(lambda _: self._api.counts().accepted_events == before + EVENTS, "all events")
        self.until(lambda process: process.get("/readyz") == (200, "ok\n"), "readiness")
        assert self.lasting.stop()[0] == 0


def test_a_group_without_a_coordinator(started: Started, api: Api, tmp_path: Path) -> None:
    """One broker cannot hold three replicas of the topic of offsets. A start waits for that, names it, ends with 0 at a
    signal, and goes on once the topic exists; under both protocols."""
    said = "No coordinator of the group answers (for "

    def waits(process: Process) -> None:
        process.until(lambda: process.status()["coordinator_silent"], "the silence")
        code, text = process.get("/readyz")
        assert (code, text.startswith(said)) == (503, True), text
        assert process.get("/healthz") == (200, "ok\n")
        process.until(lambda: said in process.stderr, "the log")
        assert "pinstream_coordinator_silent_seconds 0" not in process.get("/metrics")[1]

    with started(RealBroker(offsets_topic_replication_factor=3)) as broker, ExitStack() as stack:
        kafka = Kafka(broker.bootstrap_servers, "real")
        lines = [Line(stack, kafka, api, tmp_path, protocol) for protocol in PROTOCOLS]
        for line in lines:
            waits(line.stopped)
            line.ends_at_once(AT_ONCE)
            waits(line.lasting)
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        compacted = {"cleanup.policy": "compact"}
        admin.create_topics([NewTopic(OFFSETS, 1, 1, config=compacted)])[OFFSETS].result(30)
        for line in lines:
            line.until(
                lambda process: process.status()["coordinator_silent"] is None, "the end of the silence"
            )
            line.delivers()


class Between:
    """Stands before a broker and passes all on, but drops questions for committed offsets until it `hears` them, and
    breaks the connection at the next `cuts` commits. A context manager."""

    def __init__(self, loop: Loop, broker: RealBroker) -> None:
        self.hears = False
        self.dropped = self.cuts = 0
        self._loop, self._behind = loop, int(broker.bootstrap_servers.rpartition(":")[2])
        [port] = free_ports(1)
        self._port = port
        # Clients go where the broker says that it is.
        sasl = f"SASL://{broker.sasl_bootstrap_servers}"
        broker.settings["advertised.listeners"] = f"PLAINTEXT://127.0.0.1:{port},{sasl}"

    def __enter__(self) -> Self:
        self._server = self._loop.call(asyncio.start_server(self._connected, "127.0.0.1", self._port))
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    async def _connected(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            broker, to_broker = await asyncio.open_connection("127.0.0.1", self._behind)
            back = asyncio.create_task(_carry(broker, to_client))
            try:
                while True:
                    size = await client.readexactly(4)
                    request = await client.readexactly(int.from_bytes(size, "big"))
                    kind = int.from_bytes(request[:2], "big")
                    if kind == _OFFSET_COMMIT and self.cuts:
                        self.cuts -= 1
                        break
                    if kind == _OFFSET_FETCH and not self.hears:
                        self.dropped += 1
                    else:
                        to_broker.write(size + request)
            finally:
                back.cancel()
                to_broker.close()
        to_client.close()


async def _carry(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await source.read(1 << 16):
            target.write(piece)
        target.close()


@pytest.fixture(scope="module")
def between(started: Started, servers: Loop) -> Iterator[tuple[Between, Kafka]]:
    """A broker, and who stands before it."""
    broker = RealBroker()
    with Between(servers, broker) as found, started(broker):
        yield found, Kafka(broker.bootstrap_servers, "real")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_connection_breaks_at_the_last_commit(
    between: tuple[Between, Kafka], api: Api, tmp_path: Path, protocol: str
) -> None:
    """More often than the client repeats it by itself: the member repeats it within its grace, and all is committed."""
    cutter, kafka = between
    cutter.hears = True
    shop = Shop(
        kafka, api, tmp_path, partitions=2, KAFKA_GROUP_PROTOCOL=protocol, **switched(commit_interval=600)
    )
    shop.write_orders(60)
    with shop.run() as service:
        service.until_settled(60)
        assert shop.committed == 0
        cutter.cuts = 9
    assert cutter.cuts == 0
    assert shop.committed == 60
    assert "last commit" not in service.stderr


def test_nobody_answers_about_offsets(between: tuple[Between, Kafka], api: Api, tmp_path: Path) -> None:
    """The group has assigned its partitions, and where to start is not known: it asks again until it is."""

    def waits(process: Process) -> None:
        why = "the brokers do not say where to start: 2 assigned partitions wait"
        process.until(lambda: process.get("/readyz") == (503, f"{why}\n"), "the cause")
        process.until(
            lambda: "2 partitions wait for the brokers to say where to start" in process.stderr, "the log"
        )
        assert process.get("/healthz") == (200, "ok\n")
        assert process.status()["waiting_for_start"] == 2

    silent, kafka = between
    silent.hears = False
    with ExitStack() as stack:
        lines = [Line(stack, kafka, api, tmp_path, protocol) for protocol in PROTOCOLS]
        for line in lines:
            waits(line.stopped)
            line.ends_at_once(QUESTION + AT_ONCE)
            waits(line.lasting)
        dropped = silent.dropped
        lines[0].until(lambda _: silent.dropped > dropped, "another question")
        silent.hears = True
        for line in lines:
            line.delivers()
