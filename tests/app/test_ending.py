"""The end of a service: whatever hangs, it is gone two seconds after its grace, and says what hung."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from consumer.app.ending import BEYOND_GRACE, Parts, doing, what_hangs
from tests.app.hanging import STANDS_STILL
from tests.end_to_end.processes import ACCOUNT, ROOT, TOKEN, bare_environment, wait_for

GRACE = 1.0
# For a busy machine. What hangs would hang for ten minutes.
LATE = 6.0


class Hanging:
    """A service without a broker, in which something hangs at the end."""

    def __init__(self, folder: Path, what: str, *more: str, under: tuple[str, ...] = ()) -> None:
        env = bare_environment(folder) | {
            "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
            "KAFKA_TOPICS": "orders",
            "PINTEREST_AD_ACCOUNT_ID": ACCOUNT,
            "PINTEREST_ACCESS_TOKEN": TOKEN,
            "PINSTREAM_STATE_DIR": str(folder / "state"),
            "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0",
            "PINSTREAM_LOG_FORMAT": "json",
            "PINSTREAM_SHUTDOWN_GRACE": f"{GRACE:g}s",
        }
        self._err = folder / "err"
        with self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "tests.app.hanging", what, "run", *more],
                env=env,
                cwd=ROOT,
                stderr=err,
            )

    def said(self) -> str:
        """Its stderr."""
        return self._err.read_text()

    def until(self, text: str) -> None:
        """Wait until it has said this."""
        wait_for(lambda: text in self.said(), text, within=30.0)

    def stop(self) -> tuple[int, float]:
        """SIGTERM it; return its exit code, and after how many seconds it was gone."""
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(GRACE + BEYOND_GRACE + LATE), time.monotonic() - begun
        finally:
            self.process.kill()


@pytest.mark.parametrize(
    ("what", "hung"),
    [
        ("key store blocks", "closing the key store, the main thread (hanging.py:"),
        ("page blocks", "closing the page, the main thread (hanging.py:"),
        ("handler blocks", "the main thread (__main__.py:"),
        ("pool waits", "the thread asyncio_0"),
    ],
)
def test_the_hard_end(tmp_path: Path, what: str, hung: str) -> None:
    """It comes within `BEYOND_GRACE` after the grace, with exit code 1 and one line that says what hung."""
    service = Hanging(tmp_path, what)
    service.until("kafka_trouble")  # its parts are open
    code, seconds = service.stop()
    assert code == 1
    assert GRACE < seconds < GRACE + BEYOND_GRACE + LATE
    *_, last = service.said().splitlines()
    assert last.startswith("pinstream: the end did not come within 1 s (PINSTREAM_SHUTDOWN_GRACE)")
    assert hung in last
    assert "Traceback" not in service.said()


def test_a_signal_is_heard_while_the_loop_stands_still(tmp_path: Path) -> None:
    """The thread that hears it needs no turn of the loop; a second signal ends the process at once."""
    service = Hanging(tmp_path, "loop blocks")
    service.until(STANDS_STILL)
    assert service.stop()[0] == 1
    assert "what hung: the main thread (" in service.said()

    service = Hanging(tmp_path, "loop blocks")
    service.until(STANDS_STILL)
    service.process.send_signal(signal.SIGINT)
    assert service.stop()[0] == 130


def test_what_holds_the_interpreter(tmp_path: Path) -> None:
    """No thread of Python gets a turn. The stacks of all threads say where it hangs."""
    service = Hanging(tmp_path, "interpreter is held")
    service.until("kafka_trouble")
    assert service.stop()[0] == 1
    assert "_holds_the_interpreter" in service.said()


@pytest.mark.parametrize(
    ("what", "begun", "left_behind"),
    [
        # The interpreter would wait for a thread of a library that is no daemon.
        ("thread stays", '"starting"', []),
        # `add_signal_handler` of the loop sets the one descriptor that a process has for signals; logged after that.
        ("signals are taken", '"starting"', []),
        ("key store waits", "kafka_trouble", ["the key store"]),
    ],
)
def test_a_part_that_hangs_is_left_behind(
    tmp_path: Path, what: str, begun: str, left_behind: list[str]
) -> None:
    """Closing waits no longer than the grace: the end is orderly, and the log names the part."""
    service = Hanging(tmp_path, what)
    service.until(begun)
    code, seconds = service.stop()
    assert code == 0
    assert seconds < GRACE + LATE
    lines = [json.loads(line) for line in service.said().splitlines() if "not_closed" in line]
    assert [line["part"] for line in lines] == left_behind


@pytest.mark.parametrize("what", ["key store blocks:worker", "page blocks:supervisor"])
def test_with_workers(tmp_path: Path, what: str) -> None:
    """Whether a worker or the supervisor hangs: all processes are gone in time, the workers first."""
    service = Hanging(tmp_path, what, "--workers", "2")
    service.until('"supervising"')
    supervisor = psutil.Process(service.process.pid)
    [worker] = wait_for(supervisor.children, "the first worker")
    wait_for(lambda: "kafka_trouble" in service.said(), "a worker that looks for brokers")
    code, _ = service.stop()
    assert code == 1
    assert not worker.is_running()
    assert "what hung: closing the " in service.said()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_closed_stderr(tmp_path: Path) -> None:
    """No file, socket or pipe gets its number, and a worker's reports have nothing of what is printed."""
    closed = ("sh", "-c", 'exec "$@" 2>&-', "sh")
    service = Hanging(tmp_path, "thread stays", "--workers", "2", under=closed)
    [worker] = wait_for(psutil.Process(service.process.pid).children, "the first worker")

    def is_nothing(pid: int, number: int) -> bool:
        return Path(f"/proc/{pid}/fd/{number}").readlink() == Path(os.devnull)

    wait_for(
        lambda: is_nothing(worker.pid, 0) and is_nothing(worker.pid, 1), "a worker that has taken its pipes"
    )
    assert is_nothing(worker.pid, 2)
    assert is_nothing(service.process.pid, 2)
    assert service.stop()[0] == 0


AT_ONCE = """
import asyncio, os, signal
from consumer.app.ending import Ending

real = signal.signal

def with_a_signal(number, handler):
    real(number, handler)
    if number == signal.SIGTERM:
        os.kill(os.getpid(), number)

async def main():
    signal.signal, stopped = with_a_signal, asyncio.Event()
    Ending(stopped.set, grace=5.0)
    await asyncio.wait_for(stopped.wait(), 10.0)

asyncio.run(main())
"""


def test_a_signal_as_soon_as_there_is_a_handler() -> None:
    """It is heard."""
    done = subprocess.run([sys.executable, "-c", AT_ONCE], cwd=ROOT, timeout=30, check=False)
    assert done.returncode == 0


async def test_the_time_for_parts() -> None:
    """Each has what is left, the last one opened first; an error passes, also a time-out of the part's own."""
    closed: list[str] = []

    async def close(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        closed.append(name)

    async def fails() -> None:
        raise TimeoutError("of its own")

    begun: list[bool] = []
    parts = Parts()
    parts.left = lambda: 0.05
    parts.closes = lambda: begun.append(True)
    parts.add("first", lambda: close("first", 0.0))
    parts.add("hangs", lambda: close("hangs", 60.0))
    parts.add("fails", fails)
    with pytest.raises(TimeoutError, match="of its own"):
        await parts.__aexit__(None, None, None)
    assert (closed, begun) == (["first"], [True])


def test_what_hangs_is_named() -> None:
    """What is being done, from the outside to the inside."""
    with doing("one thing"), doing("closing another"):
        assert what_hangs().startswith("one thing, closing another, the main thread (ending.py:")
    assert "one thing" not in what_hangs()


FORKS = """
import asyncio, os, signal, sys, time
from consumer.app.ending import Ending
from consumer.web.listening import main_address, listen

async def main():
    stopped = asyncio.Event()
    Ending(stopped.set, grace=5.0)
    server = await listen(main_address("127.0.0.1", 0), asyncio.Protocol)
    port = server.sockets[0].getsockname()[1]
    child = os.fork() or time.sleep(600)
    ends = os.fork() or time.sleep(600)
    os.kill(ends, signal.SIGTERM)
    assert os.waitpid(ends, 0)[1] == signal.SIGTERM
    await asyncio.sleep(0.2)
    assert not stopped.is_set()
    print(port, child, flush=True)
    os._exit(0)

asyncio.run(main())
"""


def test_a_function_that_forks(tmp_path: Path) -> None:
    """A child that outlives the process does not keep its port, and a signal for a child stops the child alone."""
    out = tmp_path / "out"
    with out.open("wb") as file:  # the child keeps a pipe open
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", FORKS], cwd=ROOT, stdout=file, timeout=30, check=False
        )
    assert done.returncode == 0
    port, child = map(int, out.read_text().split())
    try:
        assert psutil.pid_exists(child)
        with socket.create_server(("127.0.0.1", port)):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
