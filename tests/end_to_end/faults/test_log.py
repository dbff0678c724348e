"""The log is somebody else's system: its disk fills, its reader ends or stands still. Delivery does not notice."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from consumer.engine.model import Disposition
from tests.end_to_end.api import Api
from tests.end_to_end.processes import THIS, Process, run_environment, wait_for
from tests.end_to_end.shop import Shop
from tests.support.kafka.broker import free_ports
from tests.support.kafka.harness import Kafka
from tests.support.limits import LATE

COUNT = 200
GRACE = 4.0
SMALLEST_PIPE = 4096


def into(target: Path | str, how: str = "2>>") -> tuple[str, ...]:
    """A command that redirects the stderr of the one appended to it."""
    return ("sh", "-c", f'exec "$@" {how}{target}', "sh")


class Unheard(Process):
    """A service whose log cannot be read: its page is at a fixed address."""

    def __init__(self, folder: Path, *more: str, env: dict[str, str], under: tuple[str, ...]) -> None:
        self._address = f"127.0.0.1:{free_ports(1)[0]}"
        env = env | {"PINSTREAM_HTTP_ADDRESS": self._address, "PINSTREAM_SHUTDOWN_GRACE": f"{GRACE:g}s"}
        super().__init__(folder, "run", *more, env=env, under=under)

    @cached_property
    def page(self) -> str:
        return f"http://{self._address}"

    def until_it_answers(self) -> None:
        def answers() -> bool:
            with contextlib.suppress(OSError):
                return self.get("/healthz")[0] == 200
            return False

        self.until(answers, "its page")

    def dropped(self) -> int:
        """The lines of the log that it could not write."""
        count: int = self.status()["counts"]["log_lines_dropped"]
        metric = re.search(
            r"^pinstream_log_lines_dropped_total (\S+)$", self.get("/metrics")[1], re.MULTILINE
        )
        assert metric is not None
        assert float(metric[1]) >= count
        return count

    def ends_in_order(self) -> None:
        """SIGTERM ends it within the grace, and with 0."""
        code, seconds = self.stop()
        assert code == 0
        assert seconds < GRACE + LATE


@pytest.fixture
def shop(embedded_kafka: Kafka, api: Api, tmp_path: Path) -> Shop:
    """A shop with a record, on the embedded broker."""
    shop = Shop(embedded_kafka, api, tmp_path)
    shop.generate(1)
    return shop


def unheard(shop: Shop, *more: str, under: tuple[str, ...]) -> Unheard:
    """Its service, whose stderr goes elsewhere."""
    return Unheard(shop.folder, *more, env=shop.env, under=under)


def delivers(process: Unheard, shop: Shop) -> None:
    """Events that are written now arrive."""
    before = shop.api.counts().accepted_events
    now = before + shop.generate(COUNT, seed=before + 2).tally[Disposition.DELIVERED]
    process.until(lambda: shop.api.counts().accepted_events >= now, "the delivery")


@contextlib.contextmanager
def pipe(folder: Path) -> Iterator[tuple[Path, int]]:
    """A named pipe of the smallest size, and the end that reads it."""
    path = folder / "log.pipe"
    os.mkfifo(path)
    end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, SMALLEST_PIPE)
    try:
        yield path, end
    finally:
        with contextlib.suppress(OSError):
            os.close(end)


def filled(path: Path) -> None:
    """Write to the pipe until it takes no more."""
    end = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(end, b"x" * 512)
    os.close(end)


def test_a_log_that_takes_nothing(shop: Shop) -> None:
    """It starts, delivers and ends in order; /status and /metrics have the number of lines that were dropped."""
    with unheard(shop, under=into("/dev/full")) as process:
        process.until_it_answers()
        delivers(process, shop)
        assert process.until(process.dropped, "lines that are dropped") >= 1
        process.ends_in_order()


def test_a_reader_that_ends(shop: Shop) -> None:
    """A log shipper that dies does not end the service."""
    with pipe(shop.folder) as (path, end), unheard(shop, under=into(path)) as process:
        process.until_it_answers()
        os.close(end)
        delivers(process, shop)
        process.ends_in_order()


@pytest.mark.parametrize("blocks", [True, False], ids=["blocking", "non-blocking"])
def test_a_reader_that_stands_still(shop: Shop, blocks: bool) -> None:
    """With a full pipe it starts, answers, delivers, and ends within the grace. What waited is read in order when the
    reader goes on."""
    with pipe(shop.folder) as (path, end):
        filled(path)
        # Who opens it without blocking shares that with the command.
        under = into(path) if blocks else (THIS.python, "-c", NON_BLOCKING, str(path))
        with unheard(shop, under=under) as process:
            process.until_it_answers()
            delivers(process, shop)
            assert process.get("/healthz")[0] == 200
            heard = read_until(end, "partitions_assigned")
            assert {"setting", "starting", "partitions_assigned"} <= {one["event"] for one in heard}
            assert sorted(heard, key=lambda one: one["timestamp"]) == heard
            filled(path)
            delivers(process, shop)
            process.ends_in_order()


NON_BLOCKING = """
import os, sys
end = os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)
os.dup2(end, 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def read_until(end: int, event: str) -> list[dict[str, Any]]:
    """Read the pipe until a line with this event came; return the lines."""
    text = b""

    def read() -> list[dict[str, Any]]:
        nonlocal text
        with contextlib.suppress(BlockingIOError):
            text += os.read(end, 65536)
        *lines, _ = text.decode().split("\n")
        found = [json.loads(line.lstrip("x")) for line in lines]
        return found if event in [one["event"] for one in found] else []

    heard: list[dict[str, Any]] = wait_for(read, event)
    return heard


@pytest.mark.parametrize(
    ("how", "workers"),
    [("2>&-", ()), ("2>>{pipe}", ("--workers", "2"))],
    ids=["closed", "stands still, with workers"],
)
def test_a_start_that_fails(tmp_path: Path, how: str, workers: tuple[str, ...]) -> None:
    """It ends with its own exit code, soon, whether or not its last line can be written."""
    env = run_environment(
        tmp_path, Kafka("127.0.0.1:1", "embedded"), "t", "g", "http://127.0.0.1:1",
        PINSTREAM_HTTP_ADDRESS="203.0.113.1:80",
    )  # fmt: skip
    with pipe(tmp_path) as (path, _):
        filled(path)
        under = ("sh", "-c", f'exec "$@" {how.format(pipe=path)}', "sh")
        with Process(tmp_path, "run", *workers, env=env, under=under) as process:
            assert process.wait() == 2


def test_the_last_line_is_the_error(shop: Shop) -> None:
    """Behind all lines of the log, in one piece."""
    with shop.run(KAFKA_TOPICS=f"{shop.topic}-none") as process:
        assert process.wait() == 1
    *lines, last = process.stderr.splitlines()
    assert "starting" in [json.loads(line)["event"] for line in lines]
    assert last.startswith("pinstream: ")
