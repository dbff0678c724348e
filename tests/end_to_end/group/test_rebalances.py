"""Members join, leave, die and freeze under each group protocol: eager, where a rebalance revokes all partitions of
all members; cooperative, where only those that move; and KIP-848, where the broker assigns them."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.group.members import (
    COOPERATIVE,
    EAGER,
    KIP_848,
    Protocol,
    leave,
    until_each_delivers,
)
from tests.end_to_end.group.rebalances import LONG, staged
from tests.support.kafka.harness import Kafka

pytestmark = [pytest.mark.kafka, pytest.mark.real_kafka]

ANOTHER = pytest.mark.slow("the same under another group protocol")
each_protocol = pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(EAGER, id="eager", marks=ANOTHER),
        pytest.param(COOPERATIVE, id="cooperative"),
        pytest.param(KIP_848, id="kip-848", marks=ANOTHER),
    ],
)


@each_protocol
def test_members_come_and_go(kafka: Kafka, api: Api, tmp_path: Path, protocol: Protocol) -> None:
    """Members join and leave by SIGTERM, one after another and several at once: each event is sent once."""
    ill = Chance(share=0.05)  # what is tried again lies below what is settled already
    with staged(kafka, api, tmp_path, protocol, seed=31, session=LONG, unavailable=ill) as scene:
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


@each_protocol
def test_killed(kafka: Kafka, api: Api, tmp_path: Path, protocol: Protocol) -> None:
    """One member dies in the middle of its calls: the others on that machine send again what it had in
    flight, and no more."""
    with staged(kafka, api, tmp_path, protocol, seed=32, shared=True) as scene:
        group = scene.group
        victim, *others = group.join(3)
        group.until_divided(victim, *others)
        scene.strike(signal.SIGKILL, victim)
        group.until_divided(*others)
        until_each_delivers(*others)
        scene.finish(*others)


@pytest.mark.slow("half a minute of session time-outs")
@each_protocol
def test_two_at_once(kafka: Kafka, api: Api, tmp_path: Path, protocol: Protocol) -> None:
    """One member dies and one freezes at the same moment: the third reads for both, until one comes back."""
    with staged(kafka, api, tmp_path, protocol, seed=34) as scene:
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
