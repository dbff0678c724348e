"""Updates as Kubernetes rolls them out, on a group under load whose API is slow; and how long they took.

A Deployment starts one new member, waits until it is ready, ends an old one and waits for its end (`maxSurge: 1`,
`maxUnavailable: 0`). A StatefulSet ends one member, from the last to the first, and starts it again under its name,
with its state folder and its KAFKA_GROUP_INSTANCE_ID.

A partition stands still from one commit that moved it on to the next. That includes what it takes without any
rollout: a call of the slow API, and the commit interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.group.members import CommitLog, Member, Members, Protocol, Traffic, leave, until_each
from tests.end_to_end.group.rebalances import Scene
from tests.end_to_end.processes import THIS, RunningProgram
from tests.support.kafka.harness import Kafka

SLOW_CALLS: Mapping[str, Any] = {
    "slow": Chance(share=1.0),
    "slow_seconds": 1.0,
    "calls_per_minute": None,
}
"""An API that takes a second for each call."""
RATE = 90.0
BACKLOG = 150
"""Records that are written at once before a member ends, so that it has calls in flight and events in its queue."""
STATIC = "pod-{}"
"""The name of a StatefulSet's member, which is its KAFKA_GROUP_INSTANCE_ID, too."""

SESSION = 45.0
"""Seconds that a member may be silent, Kafka's default: longer than a restart takes."""

RecordProperty = Callable[[str, object], None]
"""pytest's fixture; tests/conftest.py prints the recorded figures."""


class Rollout(Scene):
    """One rollout: the group, its load, and the time it took."""

    def __init__(self, note: RecordProperty, *about: Any) -> None:
        super().__init__(*about)
        self._note = note
        self._timed: list[tuple[str, float, float]] = []

    def until_ready(self, *members: Member) -> None:
        """Wait until each member's readiness probe succeeds; no liveness probe may fail meanwhile."""
        for member in members:
            until_each([member], lambda one: one.get("/readyz")[0] == 200, "readiness")
            assert member.get("/healthz")[0] == 200

    def replace(self, old: Sequence[Member], program: RunningProgram = THIS) -> list[Member]:
        """Roll a Deployment out; return the new members."""
        new = []
        for one in old:
            new += self.group.join(1, program)
            self.until_ready(new[-1])
            self.end(one)
        return new

    def restart(self, pods: Sequence[Member], program: RunningProgram = THIS) -> list[Member]:
        """Roll a StatefulSet out, whose members are `pods` in their order; return the new members in that order."""
        new = list(pods)
        for number in reversed(range(len(pods))):
            self.end(new[number])
            new[number] = self.start(number, program)
            self.until_ready(new[number])
        return new

    def start(self, number: int, program: RunningProgram = THIS) -> Member:
        """Start the StatefulSet's member with this number."""
        name = STATIC.format(number)
        return self.group.join_as(name, program, KAFKA_GROUP_INSTANCE_ID=name)

    def end(self, *members: Member) -> None:
        """Send SIGTERM to these members while they have work; wait until they have ended by themselves."""
        self.traffic.burst(BACKLOG)
        leave(*members)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Record when this began and ended, for the figures of `finish`."""
        since = time.time()
        yield
        self._timed.append((what, since, time.time()))

    def finish(self, *members: Member, letters_again: bool = False) -> None:
        """See `Scene.finish`. Then record how long everything took, and how long partitions stood still meanwhile."""
        super().finish(*members, letters_again=letters_again)
        commits = self.commits.timed(self.group.group, self.group.topic).values()
        for what, since, until in self._timed:
            still = max(stood_still(made, since, until) for made in commits)
            text = f"{what}: {until - since:.1f} s, no partition stood still for more than {still:.1f} s"
            self._note("figure", text)


RollingOut = Callable[..., AbstractContextManager[Rollout]]
"""The type of the fixture `rollout`, which begins one."""


def stood_still(made: Sequence[tuple[float, int]], since: float, until: float) -> float:
    """The longest time between two commits that moved the partition forward, within this time."""
    furthest, moves = -1, [since]
    for when, offset in made:
        if offset > furthest:
            furthest = offset
            moves.append(min(max(when, since), until))
    return max(later - earlier for earlier, later in pairwise([*moves, until]))


@pytest.fixture
def rollout(kafka: Kafka, api: Api, tmp_path: Path, record_property: RecordProperty) -> RollingOut:
    """A group without members, traffic, and a slow API that fails a share of the calls.

    `partitions` of the topic; `session` in seconds, Kafka's default if not given; `settings` of all members.
    """

    @contextmanager
    def begin(
        protocol: Protocol,
        *,
        partitions: int,
        session: float = SESSION,
        failing: float = 0.0,
        settings: Mapping[str, Any] = MappingProxyType({}),
    ) -> Iterator[Rollout]:
        faults = {**SLOW_CALLS, "unavailable": Chance(share=failing)}
        commits = CommitLog(kafka)
        group = Members(kafka, api, tmp_path, protocol, session=session, partitions=partitions, **settings)
        with group, Traffic(kafka, group.topic, seed=36, rate=RATE, partitions=partitions) as traffic:
            yield Rollout(record_property, group, traffic, api, commits, faults)

    return begin
