"""How often one process may ask the schema registry."""

from __future__ import annotations

from collections import deque

from consumer.engine.intake.parking import BURST
from consumer.engine.model import Policy, SchemaRef
from tests.simulation.truth import require


class Questions:
    """The questions under way, and those of the last seconds."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._under_way: set[SchemaRef] = set()
        self._asked: deque[float] = deque()

    def asked(self, ref: SchemaRef, now: float, guarding: bool) -> None:
        """A question is sent."""
        policy = self._policy
        require(not guarding, "nothing is asked once the guard has tripped", ref)
        require(ref not in self._under_way, "a schema is asked for once at a time", ref)
        self._under_way.add(ref)
        maximum = policy.registry_concurrency
        require(len(self._under_way) <= maximum, "questions at once", len(self._under_way))
        self._asked.append(now)
        while self._asked[0] < now - 10:
            self._asked.popleft()
        maximum = (
            int(max(1, BURST * policy.registry_calls_per_second) + 10 * policy.registry_calls_per_second) + 1
        )
        require(len(self._asked) <= maximum, "questions in ten seconds", len(self._asked))

    def answered(self, ref: SchemaRef) -> None:
        """An answer came."""
        self._under_way.discard(ref)
