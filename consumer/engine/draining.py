"""Assignments being let go of: a revoke, or the stop."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from consumer.engine.assignment import AssignmentState
from consumer.engine.dedup import Delivery
from consumer.engine.outbox import Letter


@dataclass(slots=True)
class Drain:
    """Assignments being let go of. `number` answers a `Revoked`; None: the stop. `deadline` is monotonic."""

    number: int | None
    states: list[AssignmentState]
    deadline: float


def is_busy(states: list[AssignmentState], leaders: Sequence[Delivery], letters: Iterable[Letter]) -> bool:
    """Whether something of these assignments is out there and may still settle.

    `leaders`: deliveries in flight or on their way to the key store; their followers settle with them.
    """
    concerned = {id(state) for state in states if state.live}
    if not concerned:
        return False
    followers = (one for leader in leaders for one in leader.followers or ())
    return any(id(one.span.assignment) in concerned for some in (leaders, letters, followers) for one in some)
