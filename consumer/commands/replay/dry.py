"""What stands in for everything that writes outside: of a dry run nothing reaches the API or a topic."""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import formatdate

import orjson

from consumer.engine.messages import Answered, DeadLetter, Send


class AcceptsAll:
    """An `Api` that says processed of every event, at once."""

    async def send(self, command: Send) -> Answered:
        """As the API answers when all is well. Nobody else says what time it is here: this machine's clock counts, and
        what lies ahead of it need not wait for a word."""
        body = {
            "num_events_received": command.events,
            "num_events_processed": command.events,
            "events": [{"status": "processed"}] * command.events,
        }
        return Answered(command.number, 200, {"date": formatdate(usegmt=True)}, orjson.dumps(body))

    async def read_token(self) -> bool:
        """There is none."""
        return False


class StoresNothing:
    """A `DeadLetterWriter` that acknowledges and forgets."""

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """All taken."""
        return [True] * len(letters)
