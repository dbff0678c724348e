"""The question to the platform what time it is.

Theory of operation. While events wait for the time (`consumer.engine.intake.untimely`), the platform is asked for it by
a call that carries no event: all events may wait, so that no other call brings it. One question is under way at a time.
Any answer in the platform's own form has its ``Date``; after anything else it is asked ever more rarely.
"""

from __future__ import annotations

import math
from typing import Final

from consumer.engine.context import Context
from consumer.engine.messages import Answered, AskTime, Unanswered
from consumer.engine.sending.masking import who_answered
from consumer.engine.sending.verdicts import is_platforms
from consumer.errors import bug

# Seconds between two answers, so that they come from several servers.
_ASK_EVERY: Final = 1.0


class TimeQuestion:
    """Asks the platform for the time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # When the question was asked that is under way; None: none is.
        self._asked_at: float | None = None
        self._ask_at = -math.inf
        # Questions in a row that the platform did not answer.
        self._failures = 0

    def due(self, *, waited_for: bool) -> float | None:
        """Return when to ask; None: not as far as is known. `waited_for`: events wait for the answer."""
        return self._ask_at if waited_for and self._asked_at is None else None

    def ask(self, *, waited_for: bool) -> None:
        """Ask, if it is due."""
        now, due = self._context.now.monotonic, self.due(waited_for=waited_for)
        if due is not None and now >= due:
            self._asked_at = now
            self._context.emit(AskTime())

    def answered(self, answer: Answered | Unanswered) -> tuple[str | None, float] | None:
        """Take the answer. Return its ``Date``, and when the question was asked; None: it is not the platform's own,
        and only that says what time it is."""
        if self._asked_at is None:
            raise bug("the platform was not asked for the time")
        asked_at, self._asked_at = self._asked_at, None
        context, now = self._context, self._context.now.monotonic
        if isinstance(answer, Answered) and is_platforms(answer.status, answer.body):
            self._failures, self._ask_at = 0, now + _ASK_EVERY
            return answer.headers.get("date"), asked_at
        self._failures += 1
        delay = context.policy.probe_backoff.delay(self._failures, context.jitter())
        self._ask_at = now + delay
        reason, said = (
            (f"http_{answer.status}", who_answered(answer.headers, answer.body))
            if isinstance(answer, Answered)
            else (answer.reason, answer.said)
        )
        context.report("warning", "time_not_told", reason=reason, said=said, retry_seconds=round(delay, 3))
        return None
