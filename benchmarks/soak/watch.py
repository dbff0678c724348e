"""One sample of the process: what the system, its own /status and the disk say at this moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import psutil


class Sample(NamedTuple):
    """One sample. Sizes in bytes, `at` in seconds since the first record was produced."""

    at: float
    rss: int
    """Resident memory, with mapped files."""
    private: int
    """Resident less shared memory: what the process itself has allocated, without the key store's mapped files."""
    read: int
    delivered: int
    open_events: int
    open_bytes: int
    keys: int
    key_bytes: int
    buckets: int
    state_bytes: int
    """The state folder on disk."""

    @property
    def settled(self) -> int:
        """Records that have an outcome."""
        return self.read - self.open_events


def check(at: float, process: psutil.Process, status: dict[str, Any], state: Path) -> Sample:
    """Take a sample, with the /status document."""
    memory = process.memory_info()
    ledger, store = status["ledger"], status["key_store"]
    return Sample(
        at=round(at, 3),
        rss=memory.rss,
        private=memory.rss - memory.shared,
        read=ledger["read"],
        delivered=ledger["delivered"],
        open_events=ledger["open"],
        open_bytes=status["open"]["bytes"],
        keys=store["keys"],
        key_bytes=store["bytes"],
        buckets=store["buckets"],
        state_bytes=folder_bytes(state),
    )


def folder_bytes(folder: Path) -> int:
    """Bytes that a folder takes on disk; a file that is removed since counts as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
