"""What the key store tests share: keys by number, a store in a child process, and what a folder takes on disk."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
HOUR = 3600.0
NOON = 1_800_000_000.0
MIB = 1024 * 1024


def key(number: int) -> bytes:
    """The key of event `number`: hashed, so spread evenly, as real ones are."""
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


def keys(numbers: Iterable[int]) -> list[bytes]:
    """The keys of several events."""
    return [key(number) for number in numbers]


def disk_usage(folder: Path) -> int:
    """Bytes that `folder` takes, counted like ``du``; files may vanish while it counts."""
    total = 0
    for parent, _, names in os.walk(folder):
        for path in [parent, *(os.path.join(parent, name) for name in names)]:
            try:
                total += os.stat(path).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


class Child:
    """A process with a key store of its own, driven by lines of text (child.py)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def send(self, line: str) -> None:
        """Send a command without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def receive(self) -> str:
        """The next line of its output; empty when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        """Send a command and return its answer."""
        self.send(line)
        return self.receive()

    def kill(self) -> None:
        """SIGKILL, as by the out-of-memory killer."""
        self.process.kill()
        self.process.wait()


@contextmanager
def child(folder: Path, window: float, max_bytes: int) -> Iterator[Child]:
    """Start a child process with the store in `folder` open; it is killed at the end."""
    command = [
        sys.executable,
        "-m",
        "tests.adapters.key_store.child",
        str(folder),
        str(window),
        str(max_bytes),
    ]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with process:
        try:
            started = Child(process)
            assert started.receive() == "open"
            yield started
        finally:
            process.kill()
