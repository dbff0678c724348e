"""What stands in for everything that writes outside: of a dry run nothing reaches the API or a topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import orjson

from consumer.core.interface import Answered, DeadLetter, Send
from consumer.service import DeadLetterWriter

MOST_PROBLEMS = 10


class Problem(NamedTuple):
    """A record that cannot be delivered, and why. The message holds no personal data (see `Rejection`)."""

    topic: str
    partition: int
    offset: int
    stage: str
    code: str
    message: str


class AcceptsAll:
    """An `Api` that says processed of every event, at once."""

    async def send(self, command: Send) -> Answered:
        """As the API answers when all is well."""
        body = {
            "num_events_received": command.events,
            "num_events_processed": command.events,
            "events": [{"status": "processed"}] * command.events,
        }
        return Answered(command.number, 200, {}, orjson.dumps(body))

    async def read_token(self) -> bool:
        """There is none."""
        return False


class StoresNothing:
    """A `DeadLetterWriter` that acknowledges and forgets."""

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """All taken."""
        return [True] * len(letters)


class NotesProblems:
    """A `DeadLetterWriter` before another one: remembers the first ten letters that were stored."""

    def __init__(self, writer: DeadLetterWriter) -> None:
        self._writer = writer
        self.problems: list[Problem] = []

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """See `DeadLetterWriter.store`."""
        stored = await self._writer.store(letters)
        for letter, taken in zip(letters, stored, strict=True):
            if taken and len(self.problems) < MOST_PROBLEMS:
                self.problems.append(_problem(letter))
        return stored


def _problem(letter: DeadLetter) -> Problem:
    why = letter.rejection
    return Problem(
        letter.topic, letter.partition, letter.record.offset, why.stage.value, why.code, why.message
    )
