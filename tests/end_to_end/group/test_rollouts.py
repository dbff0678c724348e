"""Rolling updates and scaling, as Kubernetes does them: each ends, loses nothing, and sends nothing twice.

With as many members as partitions, and with one more: a spare, which must be ready for the update to go on. The API is
slow, but its answers arrive within the grace.
"""

from __future__ import annotations

import pytest

from tests.end_to_end.group.members import COOPERATIVE, KIP_848, Protocol
from tests.end_to_end.group.rollouts import RollingOut
from tests.support.kafka.harness import unique
from tests.support.redis_server import RedisServer
from tests.support.switches import switched

pytestmark = [pytest.mark.real_kafka, pytest.mark.timeout(300)]

PARTITIONS = 3
ASKED_OFTEN = switched(count_every=1.0)
"""A spare member is ready once it has heard from the brokers that it is in the group."""


def shared_store(redis: RedisServer) -> dict[str, str]:
    """The settings of a key store that the members of one test share."""
    return {"PINSTREAM_KEY_STORE": f"{redis.url}?prefix={unique('rollout')}"}


@pytest.mark.slow("a whole rollout")
@pytest.mark.parametrize(
    ("spare", "shared", "protocol"),
    [(0, True, COOPERATIVE), (1, False, KIP_848)],
    ids=["no spare, shared key store", "spare, own key stores"],
)
def test_a_deployment_rolls_out(
    rollout: RollingOut, redis: RedisServer, spare: int, shared: bool, protocol: Protocol
) -> None:
    """A new member starts and becomes ready, with or without partitions; then an old one ends, and so on."""
    with rollout(
        protocol, partitions=PARTITIONS, settings=shared_store(redis) if shared else ASKED_OFTEN
    ) as scene:
        members = scene.group.join(PARTITIONS + spare)
        scene.until_ready(*members)
        scene.group.until_divided(*members, spare=spare)
        what = f"Deployment of {len(members)} on {PARTITIONS} partitions, {'shared' if shared else 'own'} key store"
        with scene.timed(what):
            members = scene.replace(members)
            scene.group.until_divided(*members, spare=spare)
            scene.group.until_moving()
        scene.finish(*members)


@pytest.mark.slow("a whole rollout")
@pytest.mark.parametrize(("spare", "protocol"), [(0, COOPERATIVE), (1, KIP_848)], ids=["no spare", "spare"])
def test_a_stateful_set_rolls_out(rollout: RollingOut, spare: int, protocol: Protocol) -> None:
    """Each member ends and starts again under its name: it gets its partitions and its key store back."""
    with rollout(protocol, partitions=PARTITIONS, settings=ASKED_OFTEN if spare else {}) as scene:
        members = [scene.start(number) for number in range(PARTITIONS + spare)]
        scene.until_ready(*members)
        scene.group.until_divided(*members, spare=spare)
        before = [member.partitions() for member in members]
        with scene.timed(f"StatefulSet of {len(members)} on {PARTITIONS} partitions"):
            members = scene.restart(members)
            scene.group.until_divided(*members, spare=spare)
            scene.group.until_moving()
        assert [member.partitions() for member in members] == before
        scene.finish(*members)


def test_a_deployment_is_scaled_down_and_up(rollout: RollingOut, redis: RedisServer) -> None:
    """The others take over at once what the ended member had; a new member gets its share."""
    what = f"Deployment of {PARTITIONS}, shared key store"
    with rollout(COOPERATIVE, partitions=PARTITIONS, settings=shared_store(redis)) as scene:
        *members, last = scene.group.join(PARTITIONS)
        scene.group.until_divided(*members, last)
        with scene.timed(f"{what}, scaled down by one"):
            scene.end(last)
            scene.group.until_divided(*members)
            scene.group.until_moving()
        with scene.timed(f"{what}, scaled up by one"):
            members += scene.group.join(1)
            scene.until_ready(members[-1])
            scene.group.until_divided(*members)
            scene.group.until_moving()
        scene.finish(*members)
