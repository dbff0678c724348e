"""``--watch``: explain a file again after each save of the mapping, a schema or the file itself.

Theory of operation. What was saved is found by polling: the time, size and inode of each file, by its path, so that an
editor that replaces a file by renaming another one is seen like one that writes into it. A change counts once two polls
in a row find the same, since an editor may write in several steps. What cannot be read or is wrong is shown like any
error, and the next save is waited for. What changed since the last save comes from the code of ``--against``: the
results before are kept, and compared place by place.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from consumer.commands.comparison import show_comparison
from consumer.commands.explain.explaining import Explained, compared
from consumer.commands.explain.showing import Summary, print_record
from consumer.commands.payload import masker_of
from consumer.commands.results import prose, readable
from consumer.engine.model import Filtered, Rejection
from consumer.errors import PinstreamError
from consumer.settings import Settings

_POLL: Final = 0.2  # seconds
_MAX_RECORDS: Final = 1000  # of the file: more would make each save slow
_WHOLE: Final = 10_000  # characters of a record
_SHOWN: Final = 3  # records in full


class Watch:
    """Shows what `explain` makes of `file` after each save, until Ctrl-C; `wait` is called between two polls."""

    def __init__(
        self,
        file: str,
        settings: Settings,
        explain: Callable[[], Iterator[Explained]],
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._file, self._explain, self._wait = Path(file), explain, wait
        self._schemas, self._mapping = settings.pinstream.schemas_dir, settings.pinstream.mapping_file
        self._console = Console(soft_wrap=True, highlight=False, markup=False)
        self._last: list[Explained] | None = None

    def run(self) -> None:
        """Show it now and after each save. Returns on Ctrl-C."""
        with contextlib.suppress(KeyboardInterrupt):
            shown, before = None, self._stamp()
            while True:
                stamp = self._stamp()
                if stamp == before and stamp != shown:
                    shown = stamp
                    self._show()
                before = stamp
                self._wait(_POLL)

    def _stamp(self) -> list[tuple[Path, int, int, int]]:
        """Return what identifies the contents of all files that count."""
        found = []
        for path in (self._file, *sorted(self._schemas.glob("*.avsc")), self._mapping):
            with contextlib.suppress(OSError):  # while it is replaced there may be none
                if path is not None:
                    status = path.stat()
                    found.append((path, status.st_mtime_ns, status.st_size, status.st_ino))
        return found

    def _show(self) -> None:
        if self._console.is_terminal:
            self._console.clear()
        try:
            found = [*islice(self._explain(), _MAX_RECORDS)]
        except PinstreamError as error:
            prose(self._console, f"pinstream: {error}", "bold red")
        else:
            self._print(found)
            self._last = found
        prose(self._console, f"{time.strftime('%H:%M:%S')}: waiting for the next save; Ctrl-C ends.", "dim")

    def _print(self, found: list[Explained]) -> None:
        console, total, before = self._console, Summary(), self._last or found
        # Those that changed come first.
        changed = [now for was, now in zip(before, found, strict=False) if was.line != now.line]
        for one in [*changed, *(one for one in found if one not in changed)][:_SHOWN]:
            if not isinstance(one.event, Rejection | Filtered):
                masked = masker_of(one.event, one.mapped).masked(one.event)
                console.print(Text(f"read: {readable(masked, longest=_WHOLE)}", "dim"))
            print_record(console, one.name, one.line)
        for _ in total.count(found):  # counts the lines that pass
            pass
        total.show(console)
        if len(found) == _MAX_RECORDS:
            prose(console, f"These are the first {_MAX_RECORDS:,} records: no more are read here.")
        if self._last is not None:
            prose(console, "Since the last save:", "bold")
            if len(before) != len(found):
                prose(console, f"{len(before):,} records before, {len(found):,} now.")
            show_comparison(compared(before, found).document(), console)
