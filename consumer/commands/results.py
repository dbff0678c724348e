"""Print the result of a command: for people as tables and lines, for programs as one document of JSON.

All results are printed by `print_result`. Tables come from `table`, lines from `prose`: a text may come
from a record or a header, so it is never taken as rich's markup.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import click
import orjson
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from consumer.errors import Incomplete

_LONGEST: Final = 160  # characters of a value in a line about it


def print_result(
    show: Callable[[dict[str, Any], Console], None],
    document: dict[str, Any],
    *,
    as_json: bool,
    beside: bool = False,
    lost: str = ": run it again",
) -> None:
    """Print a result on stdout: for people, by `show`; with `as_json`, the document. `beside`: then also for people, on
    stderr.

    Raises `Incomplete` if stdout fails, although the command is complete; `lost`: the end of that message.
    """
    try:
        if beside or not as_json:
            show(document, Console(stderr=as_json))
        if as_json:
            click.echo(orjson.dumps(document))
        if sys.stdout is not None:  # it may be closed
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # The rest of the buffer would fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise Incomplete(f"the result could not be printed ({error.strerror}){lost}") from error


def table(
    *heads: str, rows: Iterable[Sequence[str | Text]] = (), title: str | None = None, **style: Any
) -> Table:
    """Return a table with these `rows` of texts. A head that begins with ``>`` is that of numbers; `style`: as of
    rich's `Table`.

    All tables look alike, without lines between columns: people copy commands, names and places out of a row.
    """
    columns = (
        Column(Text(head.removeprefix(">")), justify="right" if head[:1] == ">" else "left", overflow="fold")
        for head in heads
    )
    made = Table(
        *columns,
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        **style,
    )
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


def time_taken(seconds: float) -> str:
    """Return a time as ``48 ms``, ``1.3 s`` or ``4 min 10 s``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def counted(number: int, what: str) -> str:
    """Return a number with its noun: ``1 partition``, ``1,200 partitions``."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def prose(console: Console, text: str, style: str | None = None) -> None:
    """Print a line of text as it is: without markup and guessed colours, and unbroken, so that it can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)


def readable(value: Any, indent: int | None = None, longest: int = _LONGEST) -> str:
    """Return JSON for a person: text as it is, except for characters that control a terminal. One line is cut."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if not text.isprintable():
        escaped = (one if one.isprintable() or one == "\n" else json.dumps(one)[1:-1] for one in text)
        # JSON leaves DEL as it is.
        text = "".join(escaped).replace("\x7f", "\\u007f")
    return f"{text[:longest]}…" if indent is None and len(text) > longest else text
