"""Threads of pinstream: the results of their calls, how they end, and that no client outlives a command."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from consumer.adapters.thread import OwnThread, run_blocking
from tests.end_to_end.processes import ACCOUNT, ROOT, TOKEN, WITHIN, bare_environment
from tests.support.kafka.harness import Kafka, unique
from tests.support.limits import LATE

COMMANDS = {
    "check": ("check",),
    "offsets": ("offsets", "show"),
    "letters": ("dead-letters", "list"),
    "redrive": ("dead-letters", "redrive"),
    "replay": ("replay", "--topic", "{topic}", "--from", "beginning", "--to", "end", "--dry-run"),
    "named replay": ("replay", "--topic", "{topic}", "--from", "beginning", "--to", "end", "--name", "n"),
    "produce": ("produce", "{file}", "--topic", "{topic}"),
}


async def test_run_blocking_gives_the_answer_and_ends_its_thread() -> None:
    """`run_blocking` returns the function's result or raises its error, and its thread ends."""
    assert await run_blocking("own-answer", lambda one, other: one + other, 1, other=2) == 3
    with pytest.raises(ZeroDivisionError):
        await run_blocking("own-error", lambda: 1 // 0)
    for thread in threading.enumerate():
        if thread.name.startswith("own-"):
            thread.join(WITHIN)
            assert not thread.is_alive()


async def test_an_end_waits_for_the_last_thing_and_not_for_what_hangs() -> None:
    """An end runs `last` after earlier calls; a call that never returns is left behind after a moment."""
    done: list[str] = []
    thread = OwnThread("own-orderly")
    asked = asyncio.ensure_future(thread.run(done.append, "asked"))
    await asyncio.sleep(0)
    await thread.end(lambda: done.append("last"))
    await asked
    assert done == ["asked", "last"]

    release = threading.Event()
    thread = OwnThread("own-hanging")
    hanging = asyncio.ensure_future(thread.run(release.wait, WITHIN))
    await asyncio.sleep(0)
    begun = time.monotonic()
    await thread.end(lambda: done.append("late"))
    assert time.monotonic() - begun < LATE
    assert done == ["asked", "last"]
    release.set()
    assert await hanging


def left_by(command: str, brokers: str, topic: str, folder: Path, **settings: str) -> str:
    """Run a command; return the line about its clients and threads that are left when the interpreter is about
    to end."""
    (folder / "none.ndjson").write_text("")
    words = [word.format(topic=topic, file=folder / "none.ndjson") for word in COMMANDS[command]]
    env = bare_environment(folder) | {
        "KAFKA_BOOTSTRAP_SERVERS": brokers,
        "KAFKA_TOPICS": topic,
        "KAFKA_GROUP_ID": unique("group"),
        "PINTEREST_AD_ACCOUNT_ID": ACCOUNT,
        "PINTEREST_ACCESS_TOKEN": TOKEN,
        "PINTEREST_API_URL": "http://127.0.0.1:9",
        "PINSTREAM_STATE_DIR": str(folder / "state"),
        "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0",
        **settings,
    }
    line = [sys.executable, "-m", "tests.adapters.last_threads", *words]
    done = subprocess.run(
        line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.kafka
@pytest.mark.parametrize("command", COMMANDS)
def test_no_client_is_left_when_the_interpreter_is_taken_down(
    command: str, kafka: Kafka, topic: Callable[..., str], tmp_path: Path
) -> None:
    """No thread of librdkafka or of pinstream is left when the interpreter ends, since either may crash the process."""
    assert left_by(command, kafka.bootstrap_servers, topic(2), tmp_path) == "left: nothing"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.kafka
@pytest.mark.real_kafka
@pytest.mark.parametrize("command", ["offsets", "letters", "redrive", "replay"])
def test_no_client_is_left_after_an_error(command: str, kafka: Kafka, tmp_path: Path) -> None:
    """No thread is left after a refused login either, although the error keeps the objects of its traceback to
    the end."""
    if kafka.sasl_bootstrap_servers is None:
        pytest.skip("an external broker: nobody knows how it wants its users to log in")
    login = {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "pinstream",
        "KAFKA_SASL_PASSWORD": "not-the-password",
    }
    left = left_by(command, kafka.sasl_bootstrap_servers, "orders", tmp_path, **login)
    assert left == "left: nothing"


def test_an_end_by_force_waits_for_no_reader() -> None:
    """A socket of stderr that takes nothing (systemd's journal stands still) does not hold up the end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.send(b"x" * 100)
        theirs.setblocking(True)
        program = "import time; from consumer.adapters.thread import watch_stacks as watch; "
        program += "watch(0.2, exits=True); time.sleep(600)"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stderr=theirs.fileno(), timeout=WITHIN, check=False
        )
    assert done.returncode == 1
