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
* It ends a transaction with a control batch whose checksum is 0 (librdkafka's `rdkafka_mock.c`), which a client that
  checks checksums, as pinstream does, cannot read past. The demo has no transactions; tests that do use a front
  (tests/support/kafka/front.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from consumer.errors import KafkaError

# Partitions of every topic; the mock cluster's own default.
PARTITIONS = 4
# Bytes that a partition keeps; the mock cluster's own limit.
LOG_BYTES = 5 * 1024 * 1024

_START_SECONDS = 20.0
_STOP_SECONDS = 5.0


@contextlib.asynccontextmanager
async def embedded_broker() -> AsyncIterator[str]:
    """Run the mock cluster in a child process and yield its ``bootstrap.servers``. Raises `KafkaError`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "consumer.demo.broker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C must reach only the demo, which ends the broker last
    )
    assert process.stdin is not None  # noqa: S101 - pipes, see above
    assert process.stdout is not None  # noqa: S101
    try:
        line = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                line = await process.stdout.readline()
        if not line:
            raise KafkaError(
                "the embedded broker did not start: run `python -m consumer.demo.broker` to see why"
            )
        yield line.decode().strip()
    finally:
        process.stdin.close()  # it ends by itself
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def run_broker() -> int:
    """Run in the child process: create the cluster, print its address, wait for the end of standard input."""
    # Any client can contain the cluster; this one needs no topic and no group.
    config: dict[str, str | int | float | bool] = {"test.mock.num.brokers": "1", "log_level": 0}
    client = AdminClient(config)
    try:
        [broker] = client.list_topics(timeout=_START_SECONDS / 2).brokers.values()
    except KafkaException as error:
        sys.stderr.write(f"the mock cluster does not answer: {error.args[0].str()}\n")
        return 1
    sys.stdout.write(f"{broker.host}:{broker.port}\n")
    sys.stdout.flush()
    sys.stdin.buffer.read()
    return 0


if __name__ == "__main__":
    # Without the interpreter's tidying: destroying the client would wait for its threads.
    os._exit(run_broker())
