"""Signals: the first asks for an orderly stop, a later one ends the process; the same signal twice at once
counts once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence

import pytest

PROGRAM = """
import asyncio, os, signal, sys
from consumer.app.signals import TOGETHER, on_stop_signal

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
