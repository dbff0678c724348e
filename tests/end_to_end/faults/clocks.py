"""A wrong wall clock for a process under test: this sets what ``time.time`` returns there, at any time."""

from __future__ import annotations

from pathlib import Path

_SITE = """
import time

_right = time.time


def _wrong():
    try:
        with open({path!r}) as file:
            return _right() + float(file.read() or 0)
    except OSError:
        return _right()


time.time = _wrong
"""


class WrongClock:
    """`env` is what a process needs to use this clock."""

    def __init__(self, folder: Path, off: float) -> None:
        site = folder / "site"
        site.mkdir()
        self._path = site / "off"
        self.set(off)
        (site / "sitecustomize.py").write_text(_SITE.format(path=str(self._path)))
        self.env = {"PYTHONPATH": str(site)}

    def set(self, off: float) -> None:
        """From now on the clock is `seconds` ahead; behind, if negative."""
        new = self._path.with_name("new")
        new.write_text(str(off))
        new.replace(self._path)
