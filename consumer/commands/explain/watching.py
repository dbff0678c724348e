"""``--watch``: explain a file again after each save of the mapping, a schema, the module of the user's function or the
file itself.

Theory of operation. What was saved is found by polling: the time, size and inode of each file, by its path, so that an
editor that replaces a file by renaming another one is seen like one that writes into it. A change counts once two polls
in a row find the same, since an editor may write in several steps. What cannot be read or is wrong is shown like any
error, and the next save is waited for. What changed since the last save comes from the code of ``--against``: the
results before are kept, and compared place by place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
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
from consumer.errors import PinstreamError
from consumer.settings import Settings

_POLL: Final = 0.2  # seconds
_MAX_RECORDS: Final = 1000  # of the file: more would make each save slow
_WHOLE: Final = 10_000  # characters of a record
_SHOWN: Final = 3  # records in full


def show_saves(
    file: str,
    settings: Settings,
    explain: Callable[[], Iterator[Explained]],
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Show what `explain` makes of `file`, now and after each save, until Ctrl-C; `wait` is called between polls."""
    console, last = Console(soft_wrap=True, highlight=False, markup=False), list[Explained]()
    # Python would take a file that is saved twice in a second for the one that it compiled.
    sys.dont_write_bytecode = True
    module = (settings.pinstream.transform or "").partition(":")[0]
    shown, before = None, _stamp(file, module, settings)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            stamp = _stamp(file, module, settings)
            if stamp == before != shown:
                shown = stamp
                sys.modules.pop(module, None)  # it is imported again
                console.clear()
                last = _show(explain, last, console)
                prose(console, f"{time.strftime('%H:%M:%S')}: waiting for the next save; Ctrl-C ends.", "dim")
            before = stamp
            wait(_POLL)


def _stamp(file: str, module: str, settings: Settings) -> list[tuple[Path, int, int, int]]:
    """Return what identifies the contents of all files that count; `module` is that of the user's function."""
    own, found = settings.pinstream, []
    files = {Path(file), *own.schemas_dir.glob("*.avsc"), own.mapping_file or Path(file)}
    with contextlib.suppress(ImportError, ValueError):  # the error is shown when the function is imported
        if (spec := importlib.util.find_spec(module)) and spec.origin:
            files.add(Path(spec.origin))
    for path in sorted(files):
        with contextlib.suppress(OSError):  # while it is replaced there may be none
            status = path.stat()
            found.append((path, status.st_mtime_ns, status.st_size, status.st_ino))
    return found


def _show(
    explain: Callable[[], Iterator[Explained]], last: list[Explained], console: Console
) -> list[Explained]:
    """Show the records, and what changed since the `last` ones; return what is compared with the next ones."""
    total = Summary()
    try:
        found = [*total.count(islice(explain(), _MAX_RECORDS))]
    except PinstreamError as error:
        prose(console, f"pinstream: {error}", "bold red")
        return last
    lines = {one.name: one.line for one in last}
    # Those that changed come first.
    for one in sorted(found, key=lambda one: lines.get(one.name) == one.line)[:_SHOWN]:
        if isinstance(one.event, dict):
            masked = masker_of(one.event, one.mapped).masked(one.event)
            console.print(Text(f"read: {readable(masked, longest=_WHOLE)}", "dim"))
        print_record(console, one.name, one.line)
    total.show(console)
    if len(found) == _MAX_RECORDS:
        prose(console, f"These are the first {_MAX_RECORDS:,} records: no more are read here.")
    if last:
        prose(console, "Since the last save:", "bold")
        if len(last) != len(found):
            prose(console, f"{len(last):,} records before, {len(found):,} now.")
        show_comparison(compared(last, found).document(), console)
    return found
