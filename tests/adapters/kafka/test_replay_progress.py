"""Progress of named replays: the text of the plan, and a group's offsets after a replay that ended in any way."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka import replay_progress
from consumer.adapters.kafka.bounded import BoundedSource
from consumer.adapters.kafka.commits import commit_done, read_position
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.adapters.kafka.replay_progress import (
    MAX_METADATA,
    Entry,
    NamedProgress,
    ReplayPlan,
    _find_plan,
    _new_plan,
    open_plan,
    read_entry,
    write_entry,
)
from consumer.engine.model import METADATA_BYTES, Position, TopicPartition
from consumer.engine.records import offset_map
from consumer.errors import KafkaError, UsageError
from tests.adapters.kafka.bounded_reading import TEN, Listener, offsets, read_on
from tests.support.kafka.broker import wait_until
from tests.support.kafka.harness import WITHIN, Kafka, commit, committed, produce, unique

NOW = 1_795_521_600.75
NOBODY = "127.0.0.1:9"
LARGEST = (1 << 63) - 1

digests = st.text("0123456789abcdef", min_size=16, max_size=16)
times = st.none() | st.integers(-62135596800000, 253402300799999)


def progress_of(plan: ReplayPlan) -> NamedProgress:
    """Return the progress of a named replay's plan."""
    assert plan.progress is not None
    return plan.progress


def parts_of(plan: ReplayPlan) -> list[Range]:
    """Return the ranges of a plan, without how far the replay has come."""
    return [one._replace(start=None) for one in plan.ranges]


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Draw any possible entry."""
    begin, end = sorted((draw(st.integers(0, LARGEST)), draw(st.integers(0, LARGEST))))
    begun, partitions = draw(st.integers(0, 253402300799)), draw(st.integers(1, 9_999_999))
    start = committed_as(draw(st.text()))
    planned = Range("orders", 0, begin, end, draw(times), draw(times), start)
    return Entry(draw(digests), partitions, draw(digests), begun, planned)


def committed_as(text: str) -> Position:
    """Return a commit with the metadata `text`."""
    return Position("orders", 0, 0, None, text)


def whole_text(entry: Entry) -> str:
    """Return the metadata of the entry's commit."""
    return write_entry(entry) + entry.range.first.metadata


FINGERPRINT = "0123456789abcdef"
"""A digest, as in a plan."""


class HeldAnswers(NamedTuple):
    """A group's committed offset of one partition, with its metadata."""

    partition: int
    offset: int
    text: str

    @property
    def position(self) -> Position:
        """The commit as the brokers return it."""
        return Position("orders", self.partition, self.offset, None, self.text)


def committed_plan(offsets: Sequence[int]) -> list[HeldAnswers]:
    """Return the commits of a replay that begins at 5 in each partition and has reached `offsets`."""
    ranges = [Range("orders", number, 5, 970, None, 1_700_000_000_000) for number in range(len(offsets))]
    planned = _new_plan(ranges, FINGERPRINT, 1_795_521_600, {})
    return [
        HeldAnswers(entry.range.partition, offset, write_entry(entry))
        for entry, offset in zip(planned, offsets, strict=True)
    ]


class TestEntries:
    """The text of an entry, which stands before the offset map in a commit's metadata."""

    @given(entries())
    def test_what_is_written_is_read(self, entry: Entry) -> None:
        """With any text after it, and both fit into a commit's metadata."""
        assert read_entry(committed_as(whole_text(entry))) == entry
        assert write_entry(entry).isascii()
        assert len(write_entry(entry)) + MAX_METADATA <= METADATA_BYTES

    @given(st.text() | st.text("pinstream.replay:1;0f-").map(lambda text: f"pinstream.replay:1:{text}"))
    def test_any_text_is_an_entry_or_none(self, text: str) -> None:
        """Any text is read as an entry that would be written so or as none, without an exception."""
        found = read_entry(committed_as(text))
        assert found is None or whole_text(found) == text

    @pytest.mark.parametrize("offsets", [[5, 5, 5], [5, 8, 5], [8, 9, 970], [8]])
    def test_a_changed_plan_is_refused_or_begins_again(self, offsets: list[int]) -> None:
        """What is settled is neither used by another plan nor dropped."""
        plan = committed_plan(offsets)
        assert len(_find_plan([one.position for one in plan], "g", FINGERPRINT)) == len(offsets)
        for victim, at in itertools.product(plan, range(len(plan[0].text))):
            text = victim.text
            ends = ("", *(put + text[at + 1 :] for put in ("", *"019af:;-\u0660\n") if put != text[at]))
            for end in ends:
                damaged = victim._replace(text=text[:at] + end)
                held = [(damaged if one is victim else one).position for one in plan]
                with contextlib.suppress(UsageError):
                    assert _find_plan(held, "g", FINGERPRINT) == []
                    assert max(offsets) == 5

    @pytest.mark.parametrize("begin", ["007", "+7", "٧", "7_0", "", "-1", "9" * 19])
    def test_numbers_have_one_form(self, begin: str) -> None:
        """A number in another form is refused, and so is a range that begins after its end."""
        entry = Entry("0" * 16, 1, "1" * 16, 0, Range("orders", 0, 7, 9))
        text = write_entry(entry).replace(":7:9:", f":{begin}:9:")
        assert read_entry(committed_as(text)) is None


def has_joined(consumer: Consumer) -> bool:
    """Poll once; report whether the consumer has partitions."""
    consumer.poll(0.1)
    return bool(consumer.assignment())


class Replay:
    """A named replay of all records of a topic, begun and resumed."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self.kafka = kafka
        self.topic = topic
        self.group = unique("group.replay.name")
        self.resolved = 0

    async def resolve(self) -> list[Range]:
        """Return the ranges as they are now."""
        self.resolved += 1
        return await resolve_ranges(
            self.kafka.config, [self.topic], [], Bound("beginning"), Bound("end"), WITHIN
        )

    @contextlib.asynccontextmanager
    async def open(self, fingerprint: str = "arguments", now: float = NOW) -> AsyncIterator[ReplayPlan]:
        """Open the plan; close its progress at the end of the block."""
        plan = await open_plan(self.kafka.config, self.group, fingerprint, self.resolve, now, WITHIN)
        try:
            yield plan
        finally:
            await progress_of(plan).close()

    async def reported(self, fingerprint: str = "arguments", error: type[Exception] = UsageError) -> str:
        """Return the one line that opening the plan fails with."""
        with pytest.raises(error) as raised:
            async with self.open(fingerprint):
                pass
        line = str(raised.value)
        assert "\n" not in line
        return line

    def forget(self, *partitions: int) -> None:
        """Delete the commits of these partitions, as if brokers had dropped old offsets or a process had been
        killed while it planned."""
        admin = AdminClient({**self.kafka.config, "log_level": 0})
        kept = self.metadata()
        admin.delete_consumer_groups([self.group])[self.group].result(WITHIN)
        rest = [one for one in kept if one.partition not in partitions]
        if rest:
            request = [ConsumerGroupTopicPartitions(self.group, rest)]
            admin.alter_consumer_group_offsets(request)[self.group].result(WITHIN)

    def metadata(self) -> list[RawPartition]:
        """Return all that the group has committed."""
        consumer = Consumer({**self.kafka.config, "group.id": self.group, "log_level": 0})
        partitions = consumer.list_topics(self.topic, timeout=WITHIN).topics[self.topic].partitions
        found = consumer.committed([RawPartition(self.topic, one) for one in partitions], timeout=WITHIN)
        consumer.close()
        return [one for one in found if one.offset >= 0]


@pytest.fixture
def replay(kafka: Kafka, topic: Callable[..., str]) -> Replay:
    """Return a replay of a topic with three partitions of ten records each."""
    name = topic(3)
    for partition in range(3):
        produce(kafka, name, TEN, partition=partition)
    return Replay(kafka, name)


@pytest.mark.real_kafka
class TestPlans:
    """New plans, resumed plans and refused plans."""

    async def test_a_new_plan_is_committed_at_once(self, replay: Replay) -> None:
        """Its ends stay; resumed, it has offset, leader epoch and map of each commit."""
        async with replay.open() as plan:
            assert parts_of(plan) == [Range(replay.topic, number, 0, 10) for number in range(3)]
            assert [one.first.next_offset for one in plan.ranges] == [0, 0, 0]
            assert (plan.begun, plan.resumed) == (int(NOW), False)
        produce(replay.kafka, replay.topic, TEN)
        text = offset_map.write_map(TopicPartition(replay.topic, 0), 4, [5, 7], 0, MAX_METADATA)
        positions = [Position(replay.topic, 0, 4, 0, text), Position(replay.topic, 2, 10, 0)]
        async with replay.open(now=NOW + 500) as again:
            assert (parts_of(again), again.begun) == (parts_of(plan), plan.begun)
            assert [one.first[:3] for one in again.ranges] == [one.first[:3] for one in plan.ranges]
            assert again.resumed
            assert await progress_of(again).commit(positions) == commit_done(tuple(positions), None)
        async with replay.open() as again:
            assert [again.ranges[number].start for number in (0, 2)] == positions
            assert parts_of(again) == parts_of(plan)
        assert replay.resolved == 1

    async def test_read_killed_and_resumed(self, replay: Replay) -> None:
        """All records up to the first ends, once but for those after the last commit."""
        async with replay.open() as plan:
            source = BoundedSource(replay.kafka.config, plan.ranges, progress=plan.progress)
            await source.start()
            first = await source.fetch(7, WITHIN)
            positions = [
                Position(one.topic, one.partition, one.records[-1].offset + 1, one.leader_epoch)
                for one in first
            ]
            assert (await source.commit(positions)).failure is None
            await source.fetch(5, WITHIN)  # no commit for this lot: the process was killed
        produce(replay.kafka, replay.topic, TEN)
        async with replay.open() as again:
            listener = Listener()
            source = BoundedSource(
                replay.kafka.config, again.ranges, listener=listener, progress=again.progress
            )
            await source.start()
            rest = await read_on(source)
            ends = [Position(replay.topic, number, 10, 0) for number in range(3)]
            await source.close(WITHIN, ends)
        for number in range(3):
            own = [one for one in [*first, *rest] if one.partition == number]
            assert offsets(own) == list(range(10))
        assert {one.start for one in listener.assignments} > {0}
        async with replay.open() as done:
            assert sorted(one.first for one in done.ranges) == ends
            source = BoundedSource(replay.kafka.config, done.ranges)
            assert source.done
            await source.close(WITHIN)

    async def test_what_is_not_ours_is_refused(self, replay: Replay) -> None:
        """Other arguments, and offsets that another program wrote or moved, which are never overwritten."""
        async with replay.open():
            pass
        kept = replay.metadata()
        before = [(one.offset, one.metadata) for one in kept]
        line = await replay.reported("others")
        assert "begun at 2026-11-24T12:00:00Z with other arguments" in line
        assert "--name" in line
        assert [(one.offset, one.metadata) for one in replay.metadata()] == before
        for text in ("", "moved by hand", "pinstream:1:AAAA", "pinstream.replay:1:", "größer"):
            commit(replay.kafka, replay.group, replay.topic, 3, 1, text)
            assert f"no replay wrote ({replay.topic}[1])" in await replay.reported()
            assert committed(replay.kafka, replay.group, replay.topic, 1).metadata == text or not text
        for one, offset in ((kept[1], 0), (kept[2], 11)):
            commit(replay.kafka, replay.group, replay.topic, offset, one.partition, one.metadata or "")
        assert f"no replay wrote ({replay.topic}[2])" in await replay.reported()

    async def test_a_plan_of_which_nothing_was_settled_begins_again(self, replay: Replay) -> None:
        """With present ends and other arguments; times are part of it, remains are not."""
        async with replay.open():
            pass
        replay.forget(1)
        produce(replay.kafka, replay.topic, TEN)
        async with replay.open("others", NOW + 9) as plan:
            assert (plan.resumed, plan.begun) == (False, int(NOW) + 9)
            assert [one.end for one in plan.ranges] == [20, 10, 10]
        async with replay.open("others") as again:
            assert again.resumed
        replay.forget(0)

        async def resolve() -> Sequence[Range]:
            return [Range(replay.topic, 0, 0, 5, -5, 7)]

        for resumed in (False, True):
            plan = await open_plan(replay.kafka.config, replay.group, "b", resolve, NOW + 1, WITHIN)
            assert (parts_of(plan), plan.resumed) == (await resolve(), resumed)
            if resumed:
                await progress_of(plan).commit([Position(replay.topic, 0, 4, 0)])
            await progress_of(plan).close()
        replay.forget(0, 1, 2)
        async with replay.open() as again:
            assert not again.resumed

    @pytest.mark.parametrize("position", [Position("", 1, 4, 0), Position("", 1, 0, None, "a map")])
    async def test_an_incomplete_plan_is_refused(self, replay: Replay, position: Position) -> None:
        """With settled offsets and a missing partition: neither a shorter replay nor a new one."""
        async with replay.open() as plan:
            await progress_of(plan).commit([position._replace(topic=replay.topic)])
        replay.forget(2)
        assert "is incomplete" in await replay.reported()

    @pytest.mark.parametrize("protocol", ["classic", "consumer"])
    async def test_a_group_with_members_is_refused(self, replay: Replay, protocol: str) -> None:
        """A group with members is refused in one line, both for a new replay and for a resumed one."""
        for _ in range(2):
            config: dict[str, Any] = {**replay.kafka.config, "group.id": replay.group, "log_level": 0}
            consumer = Consumer({**config, "enable.auto.commit": False, "group.protocol": protocol})
            consumer.subscribe([replay.topic])
            assert wait_until(functools.partial(has_joined, consumer), WITHIN)
            assert f"the group {replay.group} has members" in await replay.reported(error=KafkaError)
            consumer.close()
            async with replay.open():
                pass

    async def test_old_commits_are_repeated_while_the_replay_goes_on(
        self, replay: Replay, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From time to time a commit repeats old commits of the plan, since brokers drop offsets one by one."""
        async with replay.open():
            pass
        found = [read_entry(read_position(one)) for one in replay.metadata()]
        entries = [one for one in found if one is not None]
        assert len(entries) == 3
        for refresh, left in ((0.0, 3), (1000.0, 2)):
            monkeypatch.setattr(replay_progress, "_REFRESH", refresh)
            progress = NamedProgress(replay.kafka.config, replay.group, WITHIN)
            await progress.begin(entries)
            replay.forget(1)
            position = Position(replay.topic, 0, 4, 0)
            assert await progress.commit([position]) == commit_done((position,), None)
            await progress.close()
            assert len(replay.metadata()) == left

    async def test_what_cannot_be_committed_is_named(self, replay: Replay) -> None:
        """Another partition's position; and metadata that are too large, which the engine omits then."""
        ours, foreign = Position(replay.topic, 0, 4, 0), Position("other", 0, 4, 0)
        async with replay.open() as plan:
            progress = progress_of(plan)
            assert await progress.commit([ours, foreign]) == commit_done((ours,), "_UNKNOWN_PARTITION")
            assert await progress.commit([foreign]) == commit_done((), "_UNKNOWN_PARTITION")
            large = ours._replace(metadata="x" * METADATA_BYTES)
            assert await progress.commit([large]) == commit_done((), "OFFSET_METADATA_TOO_LARGE")
            fits = large._replace(metadata="x" * MAX_METADATA)
            assert await progress.commit([fits]) == commit_done((fits,), None)

    async def test_the_group_of_the_service_is_another(self, replay: Replay) -> None:
        """A replay does not change the offsets of the service's group."""
        group = unique("service")
        commit(replay.kafka, group, replay.topic, 7)
        async with replay.open() as plan:
            config: dict[str, Any] = {**replay.kafka.config, "group.id": group}
            source = BoundedSource(config, plan.ranges, progress=plan.progress)
            await source.start()
            await read_on(source)
            await source.close(WITHIN, [Position(replay.topic, 0, 10, 0)])
        assert committed(replay.kafka, group, replay.topic).offset == 7
        assert committed(replay.kafka, replay.group, replay.topic).offset == 10


async def test_brokers_that_are_away_are_reported_in_time() -> None:
    """Opening a plan fails in one line with the setting; a commit fails without raising."""

    async def resolve() -> Sequence[Range]:
        raise AssertionError("not asked")

    resolving: Callable[[], Awaitable[Sequence[Range]]] = resolve
    with pytest.raises(KafkaError, match="KAFKA_BOOTSTRAP_SERVERS"):
        await open_plan({"bootstrap.servers": NOBODY}, "g", "a", resolving, NOW, 1.0)
    progress = NamedProgress({"bootstrap.servers": NOBODY}, "g", 1.0)
    with pytest.raises(KafkaError, match="the group g"):
        await progress.positions(())
    position = Position("t", 0, 0, None)
    entry = Entry("0" * 16, 1, "0" * 16, 0, Range("t", 0, 0, 9, start=position))
    with pytest.raises(KafkaError, match="cannot be kept in the group g"):
        await progress.begin([entry])
    for _ in range(2):
        await progress.close()
    assert await progress.commit([position]) == commit_done((), "_DESTROY")
