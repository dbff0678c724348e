"""A disk that fails: each system call of a store of files can fail, be cut short, or be the last one of the process.

Theory of operation. `Disk` replaces the module `os` where files are changed. It counts its calls, and at the N-th it
fails as its `Fault` says. After ``kill`` no call does anything (`Killed` passes through all code that would
clean up), and the changes of earlier calls stay, as after SIGKILL. After ``power`` only flushed data stay: a file's
content as of its last flush, and its name as of the folder's last flush.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

CHANGES = ("open", "write", "pwrite", "ftruncate", "fdatasync", "fsync", "rename", "unlink")


class Killed(BaseException):
    """Raised by every call to a disk after the process was killed."""


class Fault(NamedTuple):
    """A kind of fault and the number of the call at which it occurs."""

    kind: str
    """``EIO``, ``kill`` and ``power`` occur at any call; ``short``, ``half ENOSPC`` and ``half kill`` at a
    write, half of which is done first."""
    number: int

    def may_be_at(self, name: str) -> bool:
        """Report whether this fault can occur at a call of the function `name`."""
        return name in ("write", "pwrite") or self.kind in ("EIO", "kill", "power")


class Disk:
    """Counts the calls of `os` that change files, and fails at the one that its fault names."""

    def __init__(self, root: Path, fault: Fault | None) -> None:
        self.calls = 0
        self.hit = False
        self._root = root
        self._fault = fault
        self._dead = False
        self._content: dict[int, bytes] = {}
        self._names: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._failing(name, real) if name in CHANGES else real

    def _failing(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if self._dead:
                raise Killed
            if self._fault is None or self._fault.may_be_at(name):
                self.calls += 1
                if self._fault is not None and self.calls == self._fault.number:
                    self.hit = True
                    return self._fail(self._fault.kind, real, arguments)
            return self._do(name, real, arguments)

        return call

    def _fail(self, kind: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if kind in ("short", "half ENOSPC", "half kill"):
            number, data, *at = arguments
            done = real(number, data[: len(data) // 2], *at)
            if kind == "short":
                return done
        if kind in ("EIO", "half ENOSPC"):
            code = errno.EIO if kind == "EIO" else errno.ENOSPC
            raise OSError(code, os.strerror(code))
        self._dead = True
        raise Killed

    def _do(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name not in ("fsync", "fdatasync"):  # a flush takes time, and kills lose nothing without
            return real(*arguments)
        if self._fault is None or self._fault.kind != "power":
            return None
        path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
        if path.is_dir():
            self._names = {one.name: one.stat().st_ino for one in path.iterdir()}
        elif path.exists():
            self._content[path.stat().st_ino] = path.read_bytes()
        return None

    def lose_power(self) -> None:
        """Set the folder back to what was flushed."""
        for path in self._root.iterdir():
            path.unlink()
        for name, number in self._names.items():
            (self._root / name).write_bytes(self._content.get(number, b""))


@contextmanager
def failing(root: Path, fault: Fault | None, *modules: ModuleType) -> Iterator[Disk]:
    """Let `modules`, which keep files in `root`, use a disk that fails with `fault`; a kill ends the block."""
    disk = Disk(root, fault)
    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, "os", disk)
        try:
            yield disk
        except Killed:
            if fault is not None and fault.kind == "power":
                disk.lose_power()
