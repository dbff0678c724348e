"""What every part of the core shares while one input is handled: the time, the commands so far, the dice."""

from __future__ import annotations

from random import Random

from consumer.engine.counters import Counters
from consumer.engine.interface import Command, Report
from consumer.engine.model import Instant
from consumer.engine.policy import Policy


class Context:
    """Set anew for each input by `Pipeline.handle`; the random numbers come from one seed (design.md, rule 10)."""

    def __init__(self, policy: Policy, seed: int) -> None:
        self.policy = policy
        self.counters = Counters()
        self.now = Instant(0.0, 0.0)
        self._commands: list[Command] = []
        self._random = Random(seed)  # noqa: S311 - jitter, not a secret
        self._numbers = 0

    def begin(self, now: Instant) -> None:
        """An input came at `now`."""
        self.now = now

    def emit(self, command: Command) -> None:
        """Something is to be done."""
        self._commands.append(command)

    def take(self) -> list[Command]:
        """All that is to be done, in order; the list starts anew."""
        commands, self._commands = self._commands, []
        return commands

    def report(self, level: str, event: str, **fields: str | int | float | None) -> None:
        """Something worth a log line."""
        self.emit(Report(level, event, fields))

    def number(self) -> int:
        """A number no other command or batch has."""
        self._numbers += 1
        return self._numbers

    def jitter(self) -> float:
        """Uniform from 0 to 1."""
        return self._random.random()
