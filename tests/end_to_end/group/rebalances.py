"""What must hold in every rebalance, whatever the group's protocol.

Every scenario runs under traffic, against an API that takes its time, with a backlog at the moment it happens,
so that calls are in flight and events queued behind them. Afterwards nothing is lost, and twice was sent

* nothing, if members came and went in order: they drained, committed and released their partitions;
* at most what was in flight, for each member that died or was frozen, if the others know the keys that it stored;
* what it had sent and not committed, if they are other machines and do not: these very events and no others.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.group.members import (
    CONCURRENCY,
    IN_FLIGHT,
    CommitLog,
    Member,
    Members,
    Protocol,
    Traffic,
    leave,
)
from tests.end_to_end.records import dead_letters
from tests.support.kafka.broker import wait_until
from tests.support.kafka.harness import Kafka

SLOW, STRUCK = 0.2, 1.0
"""Seconds that the API takes to answer each call; more before a strike, so that all calls are in flight for seconds."""
RATE = 100.0
SOME, MANY = 500, 900
"""Backlogs for one or two members, and for all of them."""
BURSTS, LULL = 6, 5.0
"""How often a backlog is tried, and within how many seconds its processing must be seen: a slow test may miss it."""
SHORT, LONG = 3.0, 10.0
"""Session time-outs in seconds: short where a member must be thrown out, long where none must be."""


def _are_busy(goals: Sequence[tuple[Member, int]], calls: int) -> bool:
    return all(one.delivered() >= goal and one.calls_in_flight() >= calls for one, goal in goals)


class Scene:
    """One scenario: the group, the traffic, and what was observed at each ungraceful moment."""

    def __init__(
        self, group: Members, traffic: Traffic, api: Api, commits: CommitLog, faults: Mapping[str, Any]
    ) -> None:
        self.group, self.traffic, self.commits = group, traffic, commits
        self._api, self._faults = api, faults
        api.set_faults(**faults)
        self._fallen: dict[str, dict[int, int]] = {}
        """Those that were struck, by name: where each of their partitions was committed then."""
        self._sent: dict[str, set[str]] = {}
        """What those that were woken had sent before that."""

    def burst(self, *members: Member, backlog: int = SOME, calls: int = CONCURRENCY // 2) -> None:
        """Give them more than they can send at once; wait until each has delivered some of it and has more
        calls in flight."""
        for _ in range(BURSTS):
            goals = [(member, member.delivered() + IN_FLIGHT // 2) for member in members]
            self.traffic.burst(backlog)
            if wait_until(partial(_are_busy, goals, calls), LULL):
                return
        raise AssertionError(f"{len(members)} members were never seen with {calls} calls in flight each")

    def strike(self, number: signal.Signals, *members: Member) -> None:
        """Send SIGKILL or SIGSTOP while calls are in flight; what was sent and not committed may be sent twice."""
        partitions = {member.name: member.partitions() for member in members}
        self._api.set_faults(**{**self._faults, "slow_seconds": STRUCK})
        self.burst(*members, backlog=MANY, calls=CONCURRENCY)
        for member in members:
            member.send(number)
        self._api.set_faults(**self._faults)
        # Nobody else commits for these partitions, or reads them, before the group gives the members up.
        committed = self.group.committed()
        for name, own in partitions.items():
            self._fallen[name] = {one: committed[one] for one in own}

    def wake(self, member: Member) -> None:
        """Send SIGCONT; what it sends from now on must be its own again."""
        # Others have taken over and delivered since: its calls came in long before theirs.
        self._sent[member.name] = self._api.sent_by(member.name)
        member.send(signal.SIGCONT)

    def _owed(self) -> set[str]:
        """What those that fell had sent by then, from the committed offsets on."""
        places = self.traffic.places()
        return {
            event_id
            for name, since in self._fallen.items()
            for event_id in self._sent.get(name, self._api.sent_by(name))
            if (place := places[event_id])[0] in since and place[1] >= since[place[0]]
        }

    def finish(self, *members: Member, letters_again: bool = False) -> None:
        """The traffic ends, all of it is committed, and the members still there leave.

        `letters_again`: a member could not read what another had settled above a committed offset. No event is sent
        twice for it where a drain waits for all that is sent. But records that cannot be sent are judged ahead.
        """
        self.traffic.stop()
        self.group.until_committed(self.traffic.ends)
        leave(*members)
        self._check(letters_again)

    def _check(self, letters_again: bool) -> None:
        """Check that nothing is lost, no commit goes back, and no more is sent twice than allowed."""
        accepted = self._api.accepted()
        assert set(accepted) == self.traffic.deliverable
        commits = self.commits.of(self.group.group, self.group.topic)
        assert [commits[number][-1] for number in range(self.group.partitions)] == self.traffic.ends
        for partition, offsets in commits.items():
            assert offsets == sorted(offsets), f"the commits of partition {partition} went back: {offsets}"
        letters = dead_letters(self.group.kafka, self.group.topic)
        broken = sorted(message.value() or b"" for message, _ in letters)
        again = {event_id: times - 1 for event_id, times in accepted.items() if times > 1}
        if not self._fallen:
            assert not again, f"{len(again)} of {len(accepted)} events were sent again"
            assert letters_again or broken == self.traffic.broken, (
                f"{len(broken)} dead letters, not {len(self.traffic.broken)}"
            )
            assert set(broken) == set(self.traffic.broken)
            return
        assert set(broken) == set(self.traffic.broken)
        unowed = again.keys() - self._owed()
        assert not unowed, f"{len(unowed)} of {len(again)} sent again were not in the hands of one that fell"
        assert set(again.values()) <= {1}, "sent again more than once"
        if self.group.shared:  # then what it delivered and did not commit is known to the others
            maximum = len(self._fallen) * IN_FLIGHT
            assert len(again) <= maximum, f"{len(again)} events were sent again, more than {maximum}"


@contextmanager
def staged(
    kafka: Kafka,
    api: Api,
    folder: Path,
    protocol: Protocol,
    *,
    seed: int,
    session: float = SHORT,
    shared: bool = False,
    **faults: Any,
) -> Iterator[Scene]:
    """A group without members, traffic, and a slow API."""
    commits = CommitLog(kafka)
    faults |= {"slow": Chance(share=1.0), "slow_seconds": SLOW, "calls_per_minute": None}
    with (
        Members(kafka, api, folder, protocol, session=session, shared=shared) as group,
        Traffic(kafka, group.topic, seed=seed, rate=RATE) as traffic,
    ):
        yield Scene(group, traffic, api, commits, faults)
