"""One look at the process: what the system, its own /status and the disk say of it at this moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import psutil


class Sample(NamedTuple):
    """One look. Sizes in bytes, `at` in seconds since the first record was produced."""

    at: float
    rss: int
    """Resident: all of it, mapped files included."""
    private: int
    """Resident less shared: what the process itself has allocated. The key store's mapped file is not in it."""
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
        """Records that have their disposition."""
        return self.read - self.open_events


def look(at: float, process: psutil.Process, status: dict[str, Any], state: Path) -> Sample:
    """A sample of now, with the /status document of now."""
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
    """Bytes that a folder takes on disk; what vanishes meanwhile counts as nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
