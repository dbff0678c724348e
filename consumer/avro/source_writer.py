"""Writes lines of Python: what the two generators (`avro_source`, `convert_source`) have in common.

Only names we chose and `repr`s go into the source; values from outside are constants, bound by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Writer:
    """Lines of source with their indentation, and the constants they name."""

    def __init__(self, constants: dict[str, Any] | None = None) -> None:
        self._lines: list[str] = []
        self._depth = 1
        self.constants: dict[str, Any] = {} if constants is None else constants

    def line(self, text: str) -> None:
        self._lines.append("    " * self._depth + text)

    @contextmanager
    def block(self, header: str | None) -> Iterator[None]:
        """What is written inside stands under `header`; with None it just stands."""
        if header is None:
            yield
            return
        self.line(header)
        self._depth += 1
        yield
        self._depth -= 1

    def bind(self, value: Any, hint: str) -> str:
        """The name under which the source finds `value`."""
        name = f"{hint}_{len(self.constants)}"
        self.constants[name] = value
        return name

    def source(self, header: str) -> str:
        return "\n".join([header, *self._lines, ""])
