"""Signals: the first asks for an orderly stop, a later one ends the process; the same signal twice at once
counts once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.processes import wait_for

PROGRAM = """
import asyncio, os, signal, sys
from consumer.app.ending import TOGETHER, on_stop_signal

async def main():
    stopped = asyncio.Event()
    on_stop_signal(stopped.set)
    for part in sys.argv[1:]:
        if part == "pause":
            await asyncio.sleep(2 * TOGETHER)
        else:
            os.kill(os.getpid(), getattr(signal, part))
            await asyncio.sleep(0.001)
    print("asked" if stopped.is_set() else "not asked", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        (["SIGTERM"], 0),
        (["SIGINT", "SIGINT"], 0),
        (["SIGINT", "pause", "SIGINT"], 130),
        (["SIGTERM", "SIGINT"], 130),
        (["SIGTERM", "SIGTERM", "pause", "SIGTERM"], 130),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_a_second_signal_means(signals: Sequence[str], code: int) -> None:
    """The same signal at once counts once (`timeout` and terminals send it to the process and to its group);
    the same one later, or another one, ends the process at once."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *signals],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout == ("asked\n" if code == 0 else "")


def test_an_impatient_end_shows_the_cursor_again() -> None:
    """A progress bar hides it, and the process ends without going through the bar's own end."""
    controller, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), "SIGTERM", "SIGINT"],
        stderr=terminal,
        stdout=subprocess.PIPE,
    )
    os.close(terminal)
    assert process.wait(30) == 128 + signal.SIGINT
    assert b"\x1b[?25h" in os.read(controller, 100)
    os.close(controller)


def _end_of(process: subprocess.Popen[bytes], *, inside: bool = False) -> int:
    """SIGTERM a process, or its child, as soon as it handles that; return the exit code of the one that was started.
    Neither says a word: without the signal they would, for there are no settings."""
    asked = psutil.Process(process.pid)
    try:
        if inside:
            [asked] = wait_for(asked.children, "process 1")
        wait_for(lambda: _handles_sigterm(asked.pid), "a handler")
        asked.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30) == (b"", b"")
        return process.returncode
    finally:
        process.kill()


def _handles_sigterm(pid: int) -> bool:
    """Whether the process has a handler of SIGTERM."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line)
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run"], 0),
        (["--debug", "run", "--workers", "2"], 0),
        (["run", "--worker", "1/2"], 0),
        (["check"], -signal.SIGTERM),
    ],
    ids=["run", "supervisor", "worker", "check"],
)
def test_a_signal_while_it_imports(arguments: list[str], code: int) -> None:
    """From its first moment a service that is asked to stop ends with 0, before it has begun anything; another command
    ends by the signal."""
    process = subprocess.Popen(
        [sys.executable, "-m", "consumer", *arguments],
        env={"PATH": os.environ["PATH"], "PINSTREAM_LOG_FORMAT": "json"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert _end_of(process) == code


AS_PROCESS_1 = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child")


def can_be_process_1() -> bool:
    """Whether this user may create a process namespace."""
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run([*AS_PROCESS_1, "true"], capture_output=True, timeout=30, check=False).returncode == 0
    )


@pytest.mark.skipif(
    not can_be_process_1(), reason="unshare is not installed, or may not make a process namespace here"
)
@pytest.mark.parametrize(("command", "code"), [("run", 0), ("check", 143)])
def test_a_signal_while_it_imports_as_process_1(command: str, code: int) -> None:
    """The system delivers no signal to process 1 that it has no handler for."""
    process = subprocess.Popen(
        [*AS_PROCESS_1, sys.executable, "-m", "consumer", command],
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert _end_of(process, inside=True) == code
