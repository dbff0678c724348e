"""The embedded broker: enough of Kafka for the demo, and for tests on a machine without Java.

librdkafka contains a mock cluster (`test.mock.num.brokers`) that speaks the real protocol on loopback sockets:
produce, fetch, consumer groups (classic and KIP-848), commits with leader epochs, transactions. It runs inside a
client, so it gets its own process (``python -m consumer.demo.broker``): the broker must survive when a consumer is
killed. The process prints ``bootstrap.servers`` as one line and ends when its standard input closes, so it never
outlives its parent, even after a SIGKILL.

Its limits, each measured in tests/demo/test_broker.py:

* A topic is created when a producer first asks for it, always with `PARTITIONS` partitions. The admin API cannot create
  topics.
* A partition keeps about its last `LOG_BYTES` bytes. Older records are dropped **even if they are unread**, and a
  consumer behind that point gets an offset out of range. So a producer must not be more than `LOG_BYTES` per partition
  ahead of the consumer's committed offset.
* Everything is in memory. A classic group's first rebalance takes about three seconds.
* No transaction is ever filtered, nothing is compacted, nothing authenticates.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from consumer.errors import KafkaError

PARTITIONS = 4
"""Partitions of every topic; the mock cluster's own default."""
LOG_BYTES = 5 * 1024 * 1024
"""Bytes that a partition keeps; the mock cluster's own limit."""

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0


class EmbeddedBroker:
    """The mock cluster in a child process: ``async with EmbeddedBroker() as broker: broker.bootstrap_servers``.

    Without an event loop, use `open` and `shut`.
    """

    def __init__(self) -> None:
        self.bootstrap_servers = ""
        self._process: subprocess.Popen[str] | None = None

    async def start(self) -> Self:
        """Start the process and wait for its address. Raises `KafkaError` if there is none in time."""
        await asyncio.to_thread(self.open)
        return self

    async def stop(self) -> None:
        """End the process, and wait for it (a few seconds at most)."""
        await asyncio.to_thread(self.shut)

    def open(self) -> Self:
        """Like `start`, but blocking."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "consumer.demo.broker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C must reach only the demo, which ends the broker last
        )
        self.bootstrap_servers = _first_line(self._process, _START_SECONDS)
        if not self.bootstrap_servers:
            self.shut()
            raise KafkaError(
                "the embedded broker did not start: run `python -m consumer.demo.broker` to see why"
            )
        return self

    def shut(self) -> None:
        """Like `stop`, but blocking."""
        process, self._process = self._process, None
        if process is None:
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_SECONDS)

    @property
    def pid(self) -> int | None:
        """The id of the child process; None if there is none."""
        return None if self._process is None else self._process.pid

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _first_line(process: subprocess.Popen[str], seconds: float) -> str:
    """Return the first line of the process's output, or ``""`` if it ends or prints nothing within `seconds`."""
    alarm = threading.Timer(seconds, process.kill)
    alarm.start()
    try:
        return process.stdout.readline().strip() if process.stdout is not None else ""
    finally:
        alarm.cancel()


def run_broker() -> int:
    """The child process: create the cluster, print its address, wait for the end of standard input."""
    config: dict[str, str | int | float | bool] = {"test.mock.num.brokers": "1", "log_level": 0}
    client = AdminClient(config)
    try:
        brokers = client.list_topics(timeout=_START_SECONDS / 2).brokers.values()
    except KafkaException as error:
        sys.stderr.write(f"the mock cluster does not answer: {error.args[0].str()}\n")
        return 1
    sys.stdout.write(",".join(f"{broker.host}:{broker.port}" for broker in brokers) + "\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    return 0


if __name__ == "__main__":
    # Skip the interpreter's shutdown: destroying the client would wait for its threads.
    os._exit(run_broker())
