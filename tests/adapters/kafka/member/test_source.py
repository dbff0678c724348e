"""The consumer on a broker: fetch, commit, room, close. The same contract on the run's broker and the embedded one."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest

from consumer.adapters.kafka import source
from consumer.adapters.kafka.commits import commit_done
from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.source import KafkaSource
from consumer.engine.model import Position, TopicPartition
from consumer.errors import KafkaError, SettingsError
from tests.support.kafka.harness import WITHIN, Kafka, Member, committed, create_topic, produce, unique, until
from tests.support.limits import LATE


def numbered(count: int, start: int = 0) -> list[bytes | None]:
    """Return distinct values by number."""
    return [b"%d" % number for number in range(start, start + count)]


async def test_fetches_original_bytes_in_order(each_kafka: Kafka) -> None:
    """Key, value, headers and timestamp come as they were written; a tombstone has value None; order is kept."""
    topic = create_topic(each_kafka)
    headers = [("a", b"\x00\xff"), ("a", b"again"), ("none", None)]
    produce(each_kafka, topic, [b"\x00v", None], key=b"k", headers=headers, timestamp=1_700_000_000_123)
    produce(each_kafka, topic, [b"plain"])
    async with Member(each_kafka, [topic], unique("group")) as member:
        await member.until(lambda: len(member.records) == 3)
    first, second, third = member.records
    assert first == (0, 1_700_000_000_123, b"k", b"\x00v", tuple(headers))
    assert second.value is None
    assert (third.offset, third.key, third.value, third.headers) == (2, None, b"plain", ())


async def test_what_is_committed(each_kafka: Kafka) -> None:
    """Nothing by itself; a commit, and leaving, store leader epoch and offset, where the next member starts."""
    topic, group = create_topic(each_kafka), unique("group")
    name = TopicPartition(topic, 0)
    produce(each_kafka, topic, numbered(10))
    async with Member(each_kafka, [topic], group) as member:
        await member.until(lambda: len(member.records) == 10)
        assert member.chunks[0].leader_epoch == 0
    assert committed(each_kafka, group, topic).offset < 0
    async with Member(each_kafka, [topic], group) as first:
        await first.until(lambda: len(first.records) == 10)
        result = await first.source.commit([Position(topic, 0, 4, 0)])
    assert result == commit_done((Position(topic, 0, 4, 0),), None)
    second = Member(each_kafka, [topic], group)
    async with second:
        await second.until(lambda: len(second.records) == 6)
        assert second.held[name].start == 4
        await second.stop(commit=True)
    assert second.values == numbered(6, start=4)
    assert second.revocations == []
    found = committed(each_kafka, group, topic)
    assert (found.offset, found.leader_epoch) == (10, 0)


async def test_no_room_pauses_and_polls_on(each_kafka: Kafka) -> None:
    """Without room no record comes, and the member stays longer than its session; then all come."""
    topic, group = create_topic(each_kafka), unique("group")
    member = Member(
        each_kafka, [topic], group, config={"session.timeout.ms": 1000, "heartbeat.interval.ms": 300}
    )
    member.room = 0
    async with member:
        await member.until(lambda: len(member.held) > 0, "an assignment")
        produce(each_kafka, topic, numbered(50))
        paused_until = time.monotonic() + 2.5
        await member.until(lambda: time.monotonic() > paused_until)
        assert member.records == []
        assert (member.revocations, member.losses) == ([], [])
        member.room = 1000
        await member.until(lambda: len(member.records) == 50)
    assert member.values == numbered(50)


async def test_pauses_and_cancelled_fetches_neither_lose_nor_double(each_kafka: Kafka) -> None:
    """Each record comes once, in order, within the room; what a cancelled fetch had consumed comes next."""
    topic = create_topic(each_kafka, 2)
    for partition in (0, 1):
        produce(each_kafka, topic, numbered(200), partition=partition)
    member = Member(each_kafka, [topic], unique("group"))
    await member.source.start()
    seen: dict[int, list[int]] = {0: [], 1: []}
    delays = itertools.cycle([None, 0.0, None, 0.001, None, 0.003, None, 0.02])
    async with asyncio.timeout(WITHIN):
        while sum(map(len, seen.values())) < 400:
            try:
                async with asyncio.timeout(next(delays)):
                    chunks = await member.source.fetch(17, 0.1)
            except TimeoutError:
                continue
            assert sum(len(one.records) for one in chunks) <= 17
            for one in chunks:
                seen[one.partition].extend(record.offset for record in one.records)
                assert one.epoch == member.held[TopicPartition(topic, one.partition)].epoch
            assert await member.source.fetch(0, 0.0) == []
    assert seen == {0: list(range(200)), 1: list(range(200))}
    await member.source.close(WITHIN)


async def test_end_offsets_are_known_while_paused(each_kafka: Kafka) -> None:
    """End offsets follow the log, both while records are fetched and while partitions are paused."""
    topic = create_topic(each_kafka)
    produce(each_kafka, topic, numbered(5))
    name = TopicPartition(topic, 0)

    async with Member(each_kafka, [topic], unique("group")) as member:
        ends: dict[TopicPartition, int] = {}

        async def ends_at(offset: int) -> None:
            async with asyncio.timeout(WITHIN):
                while ends.get(name) != offset:
                    await asyncio.sleep(0.02)
                    ends.update((await member.source.end_offsets()).ends)

        await ends_at(5)
        await member.obeys(0)
        produce(each_kafka, topic, numbered(7))
        await ends_at(12)
    assert len(member.records) == 5


async def test_commits_in_flight_and_of_partitions_not_held(
    each_kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is answered while records come; what is not held is left out; without fetches it times out."""
    topic, other, group = create_topic(each_kafka), create_topic(each_kafka), unique("group")
    produce(each_kafka, topic, numbered(5))
    async with Member(each_kafka, [topic], group) as member:
        await member.until(lambda: len(member.records) == 5)
        ours, foreign = Position(topic, 0, 2, 0), Position(other, 0, 9, 0)
        assert await member.source.commit([ours, foreign]) == commit_done((ours,), "_ASSIGNMENT_LOST")
        assert await member.source.commit([foreign]) == commit_done((), "_ASSIGNMENT_LOST")
        commits = [member.source.commit([Position(topic, 0, offset, 0)]) for offset in (1, 2, 2, 5)]
        results = await asyncio.gather(*commits)
        produce(each_kafka, topic, numbered(5))
        await member.until(lambda: len(member.records) == 10)
        assert [result.failure for result in results] == [None] * 4
        assert committed(each_kafka, group, topic).offset == 5
        await member.halt()
        monkeypatch.setattr(source, "_COMMIT_TIMEOUT", 0.3)
        assert await member.commit() == commit_done((), "_TIMED_OUT")
    assert committed(each_kafka, group, other).offset < 0


@pytest.mark.real_kafka
async def test_pattern_matches_neither_dead_letters_nor_what_is_kafka_s_own(kafka: Kafka) -> None:
    """A topic that is named in full is read, whatever its name looks like."""
    prefix = unique("shop")
    orders = create_topic(kafka, name=f"{prefix}.orders")
    letters = create_topic(kafka, name=f"{prefix}.orders.dead-letters")
    produce(kafka, orders, [b"order"])
    produce(kafka, letters, [b"letter"])
    committed(kafka, unique("group"), orders)  # the first question for an offset makes such a topic
    pattern = f"^{prefix.replace('.', '[.]')}.*|^__.*"
    async with Member(kafka, [pattern], unique("group")) as member:
        await member.until(lambda: len(member.records) == 1)
        assert {one.topic for one in member.held} == {orders}
    assert member.values == [b"order"]
    async with Member(kafka, [letters], unique("group")) as named:
        await named.until(lambda: named.values == [b"letter"])


async def test_pattern_with_the_new_group_protocol_is_refused() -> None:
    """With KIP-848 the broker matches it without exceptions: dead letters would be read again."""

    class Nobody:
        """A listener that is never called."""

        assigned = revoked = lost = None

    with pytest.raises(SettingsError, match="KAFKA_GROUP_PROTOCOL"):
        KafkaSource({"group.protocol": "consumer"}, ["^a.*"], Hooks(Nobody()))  # type: ignore[arg-type]


@pytest.mark.real_kafka
async def test_what_does_not_pass_ends_the_run(kafka: Kafka) -> None:
    """A missing topic and a wrong password: one line that names the variables, and not the password."""
    missing = unique("nowhere")
    async with Member(kafka, [missing], unique("group")) as member:
        failure = await member.until_fails()
    assert isinstance(failure, KafkaError)
    assert missing in str(failure)
    assert "KAFKA_TOPICS" in str(failure)
    if kafka.sasl_bootstrap_servers is None:
        pytest.skip("this broker has no SASL listener that we know of")
    config = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
    login = {"sasl.username": "pinstream", "sasl.password": "not-the-password"}
    with_sasl = Kafka(kafka.sasl_bootstrap_servers, kafka.kind)
    async with Member(with_sasl, ["orders"], "group", config={**config, **login}) as member:
        failure = await member.until_fails()
    assert isinstance(failure, KafkaError)
    assert "KAFKA_SASL_PASSWORD" in str(failure)
    assert "not-the-password" not in str(failure)
    assert "\n" not in str(failure)


async def test_unreachable_broker_is_errors_not_the_end() -> None:
    """A broker that cannot be reached is reported and waited for: fetches return nothing, and closing does not hang."""
    nowhere = Kafka("127.0.0.1:9", "external")
    async with Member(nowhere, ["orders"], "group") as member:
        await until(lambda: len(member.errors) > 0, "trouble")
        assert member.failure is None
        assert member.records == []
        started = time.monotonic()
        await member.stop()
    assert time.monotonic() - started < LATE
    assert {code for code, _ in member.errors} <= {"_TRANSPORT", "_ALL_BROKERS_DOWN", "_RESOLVE"}


async def test_wrong_settings_name_the_variable() -> None:
    """A setting that librdkafka refuses is a settings error that names the variable."""
    member = Member(Kafka("127.0.0.1:9", "external"), ["t"], "g", config={"session.timeout.ms": "soon"})
    with pytest.raises(SettingsError, match="KAFKA_SESSION_TIMEOUT_MS"):
        await member.source.start()
    unknown = Member(Kafka("127.0.0.1:9", "external"), ["t"], "g", config={"no.such.thing": "1"})
    with pytest.raises(SettingsError, match="KAFKA_NO_SUCH_THING"):
        await unknown.source.start()


async def test_use_before_start_and_after_close_is_an_error() -> None:
    """A source that is not open raises an error that says so."""
    member = Member(Kafka("127.0.0.1:9", "external"), ["t"], "g")
    with pytest.raises(KafkaError, match="not open"):
        await member.source.fetch(1, 0.1)
    await member.source.start()
    await member.source.close(WITHIN)
    await member.source.close(WITHIN)
    with pytest.raises(KafkaError, match="not open"):
        await member.source.fetch(1, 0.1)
