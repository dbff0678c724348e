"""Lives of a topic: offsets read, committed or mapped before the topic was created again are void after it."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine.model import TopicPartition
from consumer.engine.records import offset_map
from tests.engine.building import TOPIC, Core, event, filtered, released
from tests.engine.records.commits.test_commits import DESTINATION, TOPIC_ID

NEXT_ID = "AAAAAAAAAAAAAAAAAAAAAg"


def core_of(*partitions: int, topic_id: str | None = TOPIC_ID) -> Core:
    """Return a core with these partitions of one topic, which sends at once."""
    core = Core(destination=DESTINATION, batch_events=1)
    for partition in partitions or (0,):
        core.assign(partition, epoch=1 + partition, topic_id=topic_id)
    return core


def recreated(commands: list[m.Command]) -> list[m.TopicRecreated]:
    """Return the partitions to be read from the beginning."""
    return [
        topic_id for one in commands if isinstance(one, m.RestartPartitions) for topic_id in one.partitions
    ]


def test_another_id_ends_the_assignment() -> None:
    """Another topic id drops the assignment; the partition is read from the beginning, and the log says so."""
    core = core_of(0, 1)
    core.fetch(filtered(), event("a"))
    commands = core.feed(m.TopicIds({TOPIC: NEXT_ID}))
    assert recreated(commands) == [
        m.TopicRecreated(TOPIC, 0, 1, NEXT_ID),
        m.TopicRecreated(TOPIC, 1, 2, NEXT_ID),
    ]
    [report] = core.reports("topic_made_anew")
    assert (report.level, report.fields) == ("error", {"topic": TOPIC, "partitions": 2, "released": 1})
    assert core.pipeline.context.counters.topics_made_anew == {TOPIC: 1}
    assert core.statistics().partitions == ()
    core.advance(60.0)
    assert not core.has(m.Commit)


def test_a_commit_under_way_does_no_harm() -> None:
    """A commit in flight with the old topic id is void at the next start, and its answer changes nothing."""
    core = core_of()
    core.fetch(filtered())
    core.advance(1.0)
    asked = core.take(m.Commit)
    core.feed(m.TopicIds({TOPIC: NEXT_ID}))
    core.assign(0, epoch=9, start=0, topic_id=NEXT_ID)
    core.feed(m.CommitDone(asked.positions, None))
    [position] = asked.positions
    assert offset_map.is_void(position, NEXT_ID)
    assert core.statistics().partitions[0].committed is None


def test_a_draining_partition_is_dropped_and_not_read_from_the_beginning() -> None:
    """A draining partition is dropped and released at once without a commit, and not read from the beginning."""
    core = core_of()
    core.fetch(event("a"))
    core.send_all()
    assert released(core.revoke(0)) is None
    commands = core.feed(m.TopicIds({TOPIC: NEXT_ID}))
    assert recreated(commands) == []
    assert released(commands) == []


def test_a_revoke_before_reading_from_the_beginning_commits_nothing() -> None:
    """A revoke before the partition is read from its beginning commits nothing: the source commits what a
    release says without checking epochs, and an offset of the deleted topic would count for the next one."""
    core = core_of(0, 1)
    core.fetch(filtered())
    core.fetch(filtered(), partition=1)
    assert len(recreated(core.feed(m.TopicIds({TOPIC: NEXT_ID})))) == 2
    assert released(core.revoke(0, 1)) == []


@pytest.mark.parametrize("ids", [{}, {TOPIC: TOPIC_ID}, {"another": NEXT_ID}])
def test_the_same_or_no_id_changes_nothing(ids: dict[str, str]) -> None:
    """The same topic id, or none, changes nothing: the topic is being deleted, or brokers do not know ids."""
    core = core_of()
    core.fetch(filtered())
    assert recreated(core.feed(m.TopicIds(ids))) == []
    core.advance(1.0)
    assert [one.next_offset for one in core.commit()] == [1]


def test_an_id_that_comes_late_is_taken() -> None:
    """When brokers report no id at the start, the first id they report is that of the records read."""
    core = core_of(topic_id=None)
    core.fetch(filtered())
    assert recreated(core.feed(m.TopicIds({TOPIC: TOPIC_ID}))) == []
    assert len(recreated(core.feed(m.TopicIds({TOPIC: NEXT_ID})))) == 1


def test_without_an_id_of_the_brokers_the_committed_one_counts() -> None:
    """When brokers report no id, the committed one counts, and another id that comes later ends that life."""
    core = Core(destination=DESTINATION)
    text = offset_map.write_map(TopicPartition(TOPIC, 0), 5, [], None, topic_id=TOPIC_ID)
    core.assign(0, start=5, metadata=text)
    assert len(recreated(core.feed(m.TopicIds({TOPIC: NEXT_ID})))) == 1


def test_a_start_at_the_beginning_for_a_void_offset_is_reported() -> None:
    """A void offset found at the start, when the topic was created again unread, is logged once for each topic."""
    core = Core()
    given = [
        m.Assignment(TOPIC, number, number + 1, None, False, topic_id=NEXT_ID, void=7) for number in range(3)
    ]
    core.feed(m.Assigned(given))
    [report] = core.reports("topic_made_anew")
    assert report.fields == {"topic": TOPIC, "partitions": 3, "released": 0}


def test_a_rebalance_that_brings_a_new_topic_id_is_reported_as_well() -> None:
    """A rebalance that brings a new topic id before the brokers' report is logged as well."""
    core = core_of()
    core.fetch(filtered())
    core.revoke(0)
    core.assign(0, epoch=9, topic_id=NEXT_ID)
    [report] = core.reports("topic_made_anew")
    assert report.fields == {"topic": TOPIC, "partitions": 1, "released": 0}
    core.assign(0, epoch=10, topic_id=NEXT_ID)
    assert len(core.reports("topic_made_anew")) == 1
