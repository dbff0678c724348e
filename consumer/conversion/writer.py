"""Writes how values are read from a record, as lines of Python: the hands of `convert_source`.

Theory of operation. `Reader` turns the
steps of a path into an expression; records on the way are read once into variables. Where a record is null,
trusting code reads from a dictionary of nulls instead, so that a field is one subscription and no test.
"""

from __future__ import annotations

from typing import Protocol

from consumer.avro.paths import Step, StepKind
from consumer.avro.source_writer import Writer
from consumer.conversion.decisions import walk


class Reads(Protocol):
    """What is asked of a reader: expressions, and lines before them where need be."""

    def value(self, steps: tuple[Step, ...]) -> str:
        """An expression for the value at `steps`, None if there is none."""

    def all_values(self, steps: tuple[Step, ...]) -> str:
        """An expression for all values at the end of `steps`, in order, without nulls."""


class Reader:
    """Writes how to read values below one variable; a record on the way is read once.

    Lines it writes stand at the writer's indentation of that moment, so ask only where they always run.
    """

    def __init__(
        self, writer: Writer, root: str, trusting: bool, absent: dict[str, None] | None = None
    ) -> None:
        self._writer = writer
        self._root = root
        self._trusting = trusting
        self._absent: dict[str, None] = {} if absent is None else absent
        """The record of nulls that stands for the root where it is null."""
        self._nodes: dict[tuple[Step, ...], tuple[str, dict[str, None]]] = {}

    def value(self, steps: tuple[Step, ...]) -> str:
        """An expression for the value at `steps`, None if there is none. May write lines first."""
        if not steps:
            return self._root
        name, absent = self._node(steps[:-1])
        step = steps[-1]
        absent[step.name] = None
        if not self._trusting:
            return f"get({name}, {step.name!r})"
        return f"{name}[{step.name!r}]" if step.kind is StepKind.FIELD else f"{name}.get({step.name!r})"

    def all_values(self, steps: tuple[Step, ...]) -> str:
        """An expression for all values at the end of `steps`."""
        bind = self._writer.bind
        return f"{bind(walk, 'walk')}({self._root}, {bind(steps, 'steps')})"

    def _node(self, steps: tuple[Step, ...]) -> tuple[str, dict[str, None]]:
        """The variable of the record at `steps`, and the record of nulls that stands for it where it is null."""
        if not steps:
            return self._root, self._absent
        if steps not in self._nodes:
            absent: dict[str, None] = {}
            value = self.value(steps)
            instead = f" or {self._writer.bind(absent, 'absent')}" if self._trusting else ""
            name = f"{self._root}_{len(self._nodes)}"
            self._writer.line(f"{name} = {value}{instead}")
            self._nodes[steps] = name, absent
        return self._nodes[steps]
