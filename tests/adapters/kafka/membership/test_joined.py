"""A member that the group gives nothing knows that it has joined: a spare one is ready, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumer.adapters.kafka import member as members
from tests.adapters.kafka.membership.scripted_member import Bench
from tests.support.kafka.harness import PROTOCOLS, Kafka, Member, unique


def test_only_the_consumers_own_thread_asks_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one asks the coordinator about the member id that was last seen: a client may be closed meanwhile."""
    asked: list[str] = []

    def is_member(_: object, member: str, timeout: float) -> bool:
        asked.append(member)
        return len(asked) > 1

    monkeypatch.setattr(members, "is_member", is_member)
    bench = Bench(settings={"group.protocol": "consumer"})
    assert not bench.member.is_known()  # nothing was seen of an id yet
    bench.fetch()
    bench.consumer.member_id = "used from another thread"
    assert [bench.member.is_known() for _ in range(3)] == [False, True, True]
    assert asked == ["one-of-many"] * 2


@pytest.mark.kafka
@pytest.mark.real_kafka
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
async def test_a_spare_member_knows_that_nothing_is_its_own(
    kafka: Kafka, topic: Callable[..., str], protocol: str
) -> None:
    """One partition, two members: both hear what the group gives them, with the partition or without."""
    name, group = topic(1), unique("group")
    one, other = (Member(kafka, [name], group, config=PROTOCOLS[protocol]) for _ in range(2))
    async with one:
        await one.until(lambda: bool(one.held), "the partition")
        assert (await one.source.end_offsets()).joined
        async with other:

            async def joined() -> bool:
                return (await other.source.end_offsets()).joined

            await other.until_async(joined, "what the group gives it, nothing")
            await other.until(lambda: len(one.held) + len(other.held) == 1, "one owner")
