"""What must hold in every rebalance, whatever the group's protocol: scenarios that each protocol's file runs.

Every scenario runs under traffic, against an API that takes its time, with a backlog at the moment it happens,
so that calls are in flight and events queued behind them. Afterwards nothing is lost, and twice was sent

* nothing, if members came and went in order: they drained, committed and released their partitions;
* at most what was in flight, for each member that died or was frozen, if the others know the keys that it stored;
* what it had sent and not committed, if they are other machines and do not: these very events and no others.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

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
    until_each_delivers,
    until_quiet,
)
from tests.end_to_end.records import dead_letters
from tests.support.kafka.broker import RealBroker, wait_until
from tests.support.kafka.harness import Kafka

SLOW = 0.2
"""Seconds that the API takes to answer each call."""
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

    def __init__(self, group: Members, traffic: Traffic, api: Api, commits: CommitLog) -> None:
        self.group, self.traffic, self.commits = group, traffic, commits
        self._api = api
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
        self.burst(*members, backlog=MANY, calls=CONCURRENCY)
        for member in members:
            member.send(number)
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
            most = len(self._fallen) * IN_FLIGHT
            assert len(again) <= most, f"{len(again)} events were sent again, more than {most}"


class _Scenes:
    protocol: ClassVar[Protocol]

    @contextmanager
    def scene(
        self,
        kafka: Kafka,
        api: Api,
        folder: Path,
        *,
        seed: int,
        session: float,
        shared: bool = False,
        **faults: Any,
    ) -> Iterator[Scene]:
        """A group without members, traffic, and a slow API."""
        api.set_faults(slow=Chance(share=1.0), slow_seconds=SLOW, calls_per_minute=None, **faults)
        commits = CommitLog(kafka)
        with (
            Members(kafka, api, folder, self.protocol, session=session, shared=shared) as group,
            Traffic(kafka, group.topic, seed=seed, rate=RATE) as traffic,
        ):
            yield Scene(group, traffic, api, commits)


class Rebalances(_Scenes):
    """The scenarios; each protocol has a test class that sets `protocol`."""

    def test_members_come_and_go(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """Members join and leave by SIGTERM, one after another and several at once: each event is sent once."""
        ill = Chance(share=0.05)  # what is tried again lies below what is settled already
        with self.scene(kafka, api, tmp_path, seed=31, session=LONG, unavailable=ill) as scene:
            group = scene.group
            (one,) = group.join(1)
            group.until_divided(one)
            scene.burst(one)
            (two,) = group.join(1)
            group.until_divided(one, two)
            scene.burst(one, two)
            three, four = group.join(2)
            group.until_divided(one, two, three, four)
            scene.burst(one, two)
            leave(one)
            group.until_divided(two, three, four)
            scene.burst(two, three)
            (five,) = group.join(1)  # comes while they go
            leave(two, three)
            group.until_divided(four, five)
            until_each_delivers(four, five)
            scene.finish(four, five)

    def test_killed(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """One member dies in the middle of its calls: the others on that machine send again what it had in
        flight, and no more."""
        with self.scene(kafka, api, tmp_path, seed=32, session=SHORT, shared=True) as scene:
            group = scene.group
            victim, *others = group.join(3)
            group.until_divided(victim, *others)
            scene.strike(signal.SIGKILL, victim)
            group.until_divided(*others)
            until_each_delivers(*others)
            scene.finish(*others)

    def test_frozen(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """One member is frozen for longer than the session time-out: others take over; when it continues, it
        does no harm and works again."""
        with self.scene(kafka, api, tmp_path, seed=33, session=SHORT) as scene:
            group = scene.group
            victim, *others = group.join(3)
            group.until_divided(victim, *others)
            scene.strike(signal.SIGSTOP, victim)
            group.until_divided(*others)
            group.until_moving()
            scene.wake(victim)
            group.until_divided(victim, *others)
            until_each_delivers(victim, *others)
            scene.finish(victim, *others)

    def test_two_at_once(self, kafka: Kafka, api: Api, tmp_path: Path) -> None:
        """One member dies and one freezes at the same moment: the third reads for both, until one comes back."""
        with self.scene(kafka, api, tmp_path, seed=34, session=SHORT) as scene:
            group = scene.group
            killed, frozen, other = group.join(3)
            group.until_divided(killed, frozen, other)
            scene.strike(signal.SIGSTOP, killed, frozen)
            killed.kill()
            group.until_divided(other)
            group.until_moving()
            scene.wake(frozen)
            group.until_divided(frozen, other)
            until_each_delivers(frozen, other)
            scene.finish(frozen, other)


class Woken(_Scenes):
    """The scenario that needs a broker of its own, because the broker is stopped for a moment."""

    def test_woken_before_the_broker(self, own_kafka: RealBroker, api: Api, tmp_path: Path) -> None:
        """Away past the session time-out, and nobody to tell it so: it sends nothing before it has heard.

        Its calls come home, so it could send what is queued; but that is another member's by now.
        """
        kafka = Kafka(own_kafka.bootstrap_servers, "real")
        with self.scene(kafka, api, tmp_path, seed=35, session=SHORT) as scene:
            group = scene.group
            victim, other = group.join(2)
            group.until_divided(victim, other)
            scene.strike(signal.SIGSTOP, victim)
            group.until_divided(other)
            group.until_moving()
            own_kafka.pause()
            try:
                scene.wake(victim)
                until_quiet(victim)
            finally:
                own_kafka.resume()
            group.until_divided(victim, other)
            until_each_delivers(victim, other)
            scene.finish(victim, other)
