"""What all parts share while one input is handled: the time, the commands so far, the random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from random import Random
from typing import Final

from consumer.engine.figures.counters import Counters
from consumer.engine.messages import Command, Report
from consumer.engine.model import Instant, Policy


class Context:
    """`Pipeline.handle` sets the time for each input, and takes the commands."""

    def __init__(self, policy: Policy, seed: int, sections: Sequence[str] = ()) -> None:
        """`sections`: the names of the mapping's sections, whose numbers count from 1."""
        self.policy = policy
        # The name of each section by its number. 0 is no section, so its name is empty.
        self.sections = ("", *sections)
        self.counters = Counters()
        self.now = Instant(0.0, 0.0)
        self.commands: list[Command] = []
        # The only source of random numbers, from 0 to 1: same seed, same commands (docs/architecture.md, rule 10).
        self.jitter = Random(seed).random  # noqa: S311 - jitter, not a secret
        # Gives a number that no other command or batch has, so that an answer finds what asked.
        self.number = count(1).__next__

    def emit(self, command: Command) -> None:
        """Add a command."""
        self.commands.append(command)

    def report(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Add a command that writes a log line."""
        self.emit(Report(level, event, fields))


# Seconds that an event may be ahead (`consumer.conversion.converter`).
SKEW: Final = 300.0
