"""A program on a terminal of its own: what it shows, and what is typed."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Final, Self

_WITHIN: Final = 60.0


class OnTerminal:
    """A program whose standard streams are a pseudo-terminal. A context manager: at its end the program is gone."""

    def __init__(self, line: Sequence[str], **options: Any) -> None:
        self._screen, side = pty.openpty()
        self.process = subprocess.Popen(line, stdin=side, stdout=side, stderr=side, **options)
        os.close(side)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)

    def type(self, text: str) -> None:
        """Type this."""
        os.write(self._screen, text.encode())

    def until(self, wanted: str) -> str:
        """Return what it shows from now on until it has shown this; empty: until it ends, with exit code 0."""
        shown, end = b"", time.monotonic() + _WITHIN
        while not wanted or wanted.encode() not in shown:
            assert time.monotonic() < end, f"{wanted!r} was never shown, only: {shown!r}"
            if not select.select([self._screen], [], [], 1.0)[0]:
                continue
            try:
                part = os.read(self._screen, 65536)
            except OSError:  # raised by Linux when no process has the other side open any more
                part = b""
            if not part:
                assert not wanted, f"it ended before {wanted!r}: {shown!r}"
                assert self.process.wait(_WITHIN) == 0
                break
            shown += part
        return shown.decode("utf-8", "replace").replace("\r\n", "\n")
