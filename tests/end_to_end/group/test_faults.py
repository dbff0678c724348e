"""Members share a key store, and members and the store are killed and frozen, in an order that a seed decides.

Some events come twice or more, in any partition. `TROUBLED_SEEDS=20` tries 20 orders, one after the other.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import redis as client

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.group.members import COOPERATIVE, IN_FLIGHT, Member, Members, Traffic, leave, until_each
from tests.end_to_end.processes import wait_for
from tests.end_to_end.records import dead_letters
from tests.support.kafka.harness import Kafka
from tests.support.redis_server import RedisServer, redis_cluster, redis_server

MEMBERS = 3
BACKLOG = 400
"""Records that are written at once before each trouble, so that calls are in flight."""
LEASE = 10.0
"""Seconds of a lease, with a time limit of 5 s for a call."""
SEEDS = range(int(os.environ.get("TROUBLED_SEEDS", "1")))


class FaultyGroup:
    """A group whose members and store have troubles, and how many events may be sent twice because of them."""

    def __init__(
        self, group: Members, traffic: Traffic, api: Api, store: list[RedisServer], seed: int
    ) -> None:
        self._group, self._traffic, self._api, self._store = group, traffic, api, store
        self._random = Random(seed)
        self._may_double = 0
        self.members = group.join(MEMBERS)
        group.until_divided(*self.members)

    def suffer(self) -> None:
        """Each trouble once. The group must deliver again before the next one."""
        past, short = LEASE + 1.5, self._random.uniform(1.0, 3.0)
        faults: list[Callable[[], None]] = [
            self.kill_a_member,
            lambda: self.freeze_a_member(past),
            lambda: self.freeze_a_member(short),
            lambda: self.lose_the_store(RedisServer.kill, RedisServer.start, short),
            lambda: self.lose_the_store(RedisServer.freeze, RedisServer.thaw, short),
        ]
        self._random.shuffle(faults)
        for one in faults:
            self._traffic.burst(BACKLOG)
            self.until_delivering()
            one()
            self.until_delivering()

    def until_delivering(self, events: int = 40) -> None:
        """Wait until `count` more events are accepted."""
        goal = len(self._api.accepted()) + events
        wait_for(lambda: len(self._api.accepted()) >= goal, "the group to deliver")

    def kill_a_member(self) -> None:
        """Kill a member and start another. What was in flight may be sent twice."""
        victim = self._random.choice(self.members)
        victim.kill()
        self.members.remove(victim)
        self.members += self._group.join(1)
        self._may_double += IN_FLIGHT

    def freeze_a_member(self, seconds: float) -> None:
        """Freeze a member; it continues afterwards. What was in flight may be sent twice."""
        victim = self._random.choice(self.members)
        victim.send(signal.SIGSTOP)
        time.sleep(seconds)
        victim.send(signal.SIGCONT)
        self._may_double += IN_FLIGHT

    def lose_the_store(
        self, away: Callable[[RedisServer], None], back: Callable[[RedisServer], None], seconds: float
    ) -> None:
        """Kill the store and start it again with all its data. Only what was in flight for a whole lease may be
        sent twice."""
        begun = time.monotonic()
        away(self._store[0])
        time.sleep(seconds)
        back(self._store[0])
        if time.monotonic() > begun + LEASE / 2:  # on a busy machine
            self._may_double += MEMBERS * IN_FLIGHT

    def lose_a_node(self) -> None:
        """Kill a node: its replica takes over, and may lack the last writes. What any member had in flight may
        be sent twice."""
        replicas = [client.Redis(port=node.port) for node in self._store[MEMBERS:]]
        self._random.choice(self._store[:MEMBERS]).kill()
        wait_for(lambda: any(one.info("replication")["role"] == "master" for one in replicas), "a failover")
        self._may_double += MEMBERS * IN_FLIGHT

    def finish(self) -> int:
        """Check that all is settled and committed, nothing is lost, and no more is sent twice than allowed.
        Return how many events were."""
        self._traffic.stop()
        self._group.until_committed(self._traffic.ends)
        lost = sum(self._count(member, "keys_lost") for member in self.members)
        until_each(self.members, lambda member: member.ledger()["open"] == 0, "the end of all work")
        # One that stood still may have to join the group again.
        until_each(self.members, lambda member: member.get("/readyz")[0] == 200, "readiness")
        leave(*self.members)
        accepted = self._api.accepted()
        assert set(accepted) == self._traffic.deliverable
        letters = {message.value() for message, _ in dead_letters(self._group.kafka, self._group.topic)}
        assert letters == set(self._traffic.broken)
        doubled = accepted.total() - len(accepted)
        assert doubled <= self._may_double + lost
        return doubled

    def _count(self, member: Member, name: str) -> int:
        count: int = member.status()["counts"][name]
        return count


def group_of(kafka: Kafka, api: Api, folder: Path, url: str) -> Members:
    """A group with this store, and a slow API."""
    api.set_faults(slow=Chance(share=1.0), slow_seconds=0.3, calls_per_minute=None)
    return Members(
        kafka,
        api,
        folder,
        COOPERATIVE,
        session=6.0,
        PINSTREAM_KEY_STORE=url,
        PINSTREAM_REQUEST_TIMEOUT="5s",
        PINSTREAM_MAX_OPEN_EVENTS="400",
    )


@pytest.mark.slow("a minute of outages")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", SEEDS)
def test_only_what_was_in_flight_is_doubled(
    kafka: Kafka, api: Api, tmp_path: Path, seed: int, record_property: Callable[[str, object], None]
) -> None:
    """A member is killed, two are frozen, the store is killed and frozen."""
    with (
        redis_server(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server,
        group_of(kafka, api, tmp_path, server.url) as group,
        Traffic(kafka, group.topic, seed=seed, rate=100.0, copies=0.2) as traffic,
    ):
        failing = FaultyGroup(group, traffic, api, [server], seed)
        failing.suffer()
        doubled = failing.finish()
    record_property(
        "figure", f"one member killed, two frozen, the store killed and frozen: {doubled} events doubled"
    )


@pytest.mark.slow("a cluster of six servers and its failover")
@pytest.mark.timeout(300)
def test_a_node_of_a_cluster_is_lost_while_members_run(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The members continue with its replica, without a restart."""
    with redis_cluster(tmp_path / "redis", MEMBERS, replicas=1) as nodes:
        url = f"redis://{','.join(f'127.0.0.1:{node.port}' for node in nodes[:2])}?cluster=true"
        with (
            group_of(kafka, api, tmp_path, url) as group,
            Traffic(kafka, group.topic, seed=7, rate=100.0, copies=0.2) as traffic,
        ):
            failing = FaultyGroup(group, traffic, api, nodes, seed=7)
            failing.until_delivering()
            failing.lose_a_node()
            failing.until_delivering()
            failing.finish()
