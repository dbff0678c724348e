"""``pinstream offsets`` shows where the group stands, and moves it, against real brokers and a real service."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as RawPartition
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka.cluster import Extent
from consumer.adapters.kafka.ranges import Range
from consumer.adapters.kafka.replay_progress import Entry, write_entry
from consumer.commands.group_position import GroupPosition, problems
from consumer.engine.model import Position, TopicPartition
from consumer.engine.records import offset_map
from tests.end_to_end.api import Api
from tests.end_to_end.processes import (
    Process,
    bare_environment,
    command,
    run_environment,
    the_one_line,
    wait_for,
)
from tests.end_to_end.records import (
    commerce_event,
    committed_offsets,
    new_group,
    new_topic,
    write_events,
)
from tests.support.kafka.harness import Kafka, commit, create_topic, produce, unique

PLACE = TopicPartition("orders", 0)


def environment(folder: Path, kafka: Kafka, topics: str, group: str) -> dict[str, str]:
    """Return the environment with Kafka's settings only, which is all that the command needs."""
    kafka_only = {"KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers, "KAFKA_GROUP_ID": group}
    return {**bare_environment(folder), **kafka_only, "KAFKA_TOPICS": topics}


def document(*arguments: str, env: dict[str, str]) -> dict[str, Any]:
    """Return the document of ``pinstream offsets … --json``; assert that nothing else is printed."""
    done = command("offsets", *arguments, "--json", env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def refused(*arguments: str, env: dict[str, str]) -> tuple[int, str]:
    """Return exit code and the one line of an error; assert that nothing is on stdout."""
    done = command("offsets", *arguments, env=env)
    assert done.stdout == ""
    return done.returncode, the_one_line(done.stderr)


def commit_map(kafka: Kafka, group: str, topic: str, offset: int, *settled: int, plan: str = "") -> None:
    """Commit an offset of partition 0 from outside, with an offset map of these bounds."""
    text = plan + offset_map.write_map(TopicPartition(topic, 0), offset, settled, 0)
    consumer = Consumer({**kafka.config, "group.id": group, "enable.auto.commit": False, "log_level": 0})
    raw = RawPartition(topic, 0, offset, metadata=text, leader_epoch=0)
    consumer.commit(offsets=[raw], asynchronous=False)
    consumer.close()


# The meaning of a move.


@given(
    settled=st.sets(st.integers(0, 30)),
    ends=st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted),
    data=st.data(),
)
def test_counts_what_a_move_repeats_and_skips(
    settled: set[int], ends: list[int], data: st.DataObject
) -> None:
    """The numbers of records read again and skipped are those that sets of settled and unsettled offsets give."""
    begin, end = ends
    committed = data.draw(st.integers(0, end))
    after = data.draw(st.integers(begin, end))
    above = {one for one in settled if committed <= one < end}
    bounds = [
        one for one in range(committed, end + 1) if (one in above) != (one - 1 in above and one > committed)
    ]
    text = offset_map.write_map(TopicPartition("orders", 0), committed, bounds, None)
    row = GroupPosition(PLACE, Position(*PLACE, committed, None, text), Extent(begin, end))

    here = set(range(begin, end))
    done = {one for one in here if one < committed or one in above}
    to_read = {one for one in here if one >= after}
    # `settled` counts all that the map has above the offset, also records that are deleted; the other counts do not.
    assert row.read_again(after) == len(to_read & done)
    assert row.skipped(after) == len(here - done - to_read)
    assert row.skipped(end) == len(here - done)
    assert row.settled() == len(above)


def test_each_errors_is_one_line() -> None:
    """Each kind of trouble is one line for all its partitions, which names five and counts the others."""
    log = Extent(10, 50)
    stands = [20, 10, 50, *[9] * 7, 51, None, 20]
    rows = [
        GroupPosition(
            place := TopicPartition("orders", partition),
            None if offset is None else Position(*place, offset, None, ""),
            None if partition == 12 else log,
        )
        for partition, offset in enumerate(stands)
    ]
    assert (rows[11].read_again(30), rows[11].skipped(30), rows[11].lag) == (0, 20, 40)
    said = {
        "orders[3], orders[4], orders[5], orders[6], orders[7] and 2 more": "records were deleted unread; KAFKA_AUTO_",
        "orders[10]": "the committed offset is beyond the end: the topic was created again",
        "orders[11]": "nothing committed; KAFKA_AUTO_OFFSET_RESET says",
        "orders[12]": "no longer exists",
    }
    for line, (places, text) in zip(problems(rows), said.items(), strict=True):
        assert line.startswith(f"{places}: {text}")


# Show.


@pytest.mark.real_kafka
def test_shows_where_the_group_stands(kafka: Kafka, tmp_path: Path) -> None:
    """Committed offset, beginning, end, lag, settled above, what is wrong; also of topics that only the group names."""
    topic, other, group = create_topic(kafka, 2), create_topic(kafka), new_group()
    produce(kafka, topic, [b"a"] * 10)
    commit_map(kafka, group, topic, 4, 6, 9)
    commit(kafka, group, other, 7)
    env = environment(tmp_path, kafka, topic, group)
    found = document("show", env=env)
    assert (found["group"], found["state"], found["members"]) == (group, "Empty", [])
    rows = {(one["topic"], one["partition"]): one for one in found["partitions"]}
    figures = ("committed", "beginning", "end", "lag", "settled_above")
    assert {place: [row[name] for name in figures] for place, row in rows.items()} == {
        (topic, 0): [4, 0, 10, 6, 3],
        (topic, 1): [None, 0, 0, 0, 0],
        (other, 0): [7, 0, 0, 0, 0],
    }
    assert document("show", "--group", group, "--topic", other, env=env)["partitions"] == [rows[other, 0]]
    done = command("offsets", "show", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"group {group}: Empty, no active members; 3 left to read" in done.stdout
    assert f"{topic}[1]: nothing committed" in done.stdout
    assert f"{other}[0]: the committed offset is beyond the end" in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:7])) <= 80


@pytest.mark.real_kafka
def test_bad_arguments_get_one_line(kafka: Kafka, tmp_path: Path) -> None:
    """One line says what is wrong and what exists, and nothing is written."""
    topic, group = create_topic(kafka, 3), new_group()
    produce(kafka, topic, [b"a"] * 10, partition=1)
    commit(kafka, group, topic, 0, 0)
    env = environment(tmp_path, kafka, topic, group)
    replay = f"{group}.replay.x"
    planned = Entry("a" * 16, 1, "b" * 16, 1, Range(topic, 0, 0, 9))
    commit_map(kafka, replay, topic, 0, 2, 3, plan=write_entry(planned))
    assert document("show", "--group", replay, env=env)["partitions"][0]["settled_above"] == 1
    for arguments, words in (
        (("show", "--topic", topic + "x"), ("does not exist", topic)),
        (("show", "--group", group[:-1]), ("no committed offsets", group)),
        (("set", "--yes", "--to", "end", "--group", unique("other")), ("no committed offsets",)),
        (("set", "--yes", "--to", "end", "--topic", topic + "x"), ("does not exist", topic)),
        (("set", "--yes", "--to", "soon"), ("--to", "offset:N", "ISO 8601")),
        (("set", "--yes", "--to", "offset:x"), ("--to", "offset:1000")),
        (("set", "--yes", "--to", "9999-01-01"), ("in the future",)),
        (("set", "--yes", "--to", "offset:11", "--partition", "1"), (f"{topic}[1]", "from 0 to its end, 10")),
        (("set", "--yes", "--to", "offset:5"), (f"{topic}[0]", "from 0 to its end, 0", "--partition")),
        (("set", "--yes", "--to", "end", "--partition", "3"), ("no partition 3", "0 to 2")),
        (("set", "--yes", "--to", "end", "--partition", f"{topic}:3"), ("no partition 3", "0 to 2")),
        (("set", "--yes", "--to", "end", "--partition", "x"), ("is not a partition",)),
        (("set", "--yes", "--to", "end", "--partition", ":1"), ("is not a partition",)),
        (("set", "--yes", "--to", "end", "--partition", "other:1"), ("not among the topics", topic)),
        (("set", "--yes", "--to", "end", "--group", replay), ("replay", "--name")),
    ):
        code, line = refused(*arguments, env=env)
        assert code == 2, arguments
        for word in words:
            assert word in line, (arguments, line)
    bare = {name: text for name, text in env.items() if name != "KAFKA_TOPICS"} | {"KAFKA_GROUP_ID": "none"}
    assert "KAFKA_TOPICS" in refused("show", env=bare)[1]
    assert "KAFKA_TOPICS" in refused("show", env={**env, "KAFKA_TOPICS": topic + "x"})[1]
    assert document("show", env=env)["partitions"][0]["committed"] == 0


# Set.


@pytest.mark.real_kafka
def test_with_yes_alone_offsets_are_changed(kafka: Kafka, tmp_path: Path) -> None:
    """Without, it says what the move means; with it offsets are read back. Partitions not named stay."""
    topic, group = create_topic(kafka, 3), new_group()
    for partition in range(3):
        produce(kafka, topic, [b"a"] * 100, partition=partition)
        commit(kafka, group, topic, 40 + partition, partition)
    env = environment(tmp_path, kafka, topic, group)
    done = command("offsets", "set", "--to", "offset:10", "--partition", "0", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    for text in (
        "Up to 30 records will be READ AGAIN",
        "PINSTREAM_DEDUP_WINDOW",
        "Nothing was changed. Add --yes to do it.",
    ):
        assert text in done.stdout
    [line] = [one.split() for one in done.stdout.splitlines() if "-30" in one and one.split()[1:2] == ["0"]]
    assert line[1:5] == ["0", "40", "10", "-30"]
    done = command("offsets", "set", "--to", "end", env=env)
    assert "Up to 177 records will be SKIPPED: their events are lost unless they are replayed" in done.stdout
    assert f"pinstream replay --topic {topic} --partition 0 --from offset:40 --to offset:100" in done.stdout
    assert committed_offsets(kafka, group, topic, 3) == [40, 41, 42]
    done = command("offsets", "set", "--to", "offset:3", "--partition", f"{topic}:1", "--yes", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Done. Read back from the brokers:" in done.stdout
    assert committed_offsets(kafka, group, topic, 3) == [40, 3, 42]
    both = ("--partition", "1", "--partition", "2", "--topic", topic)
    found = document("set", "--to", "end", *both, "--yes", env=env)
    assert (found["group"], found["changed"], found["read_again"], found["skipped"]) == (group, True, 0, 155)
    figures = ("partition", "before", "after", "change", "read_again", "skipped", "committed")
    assert [[one[name] for name in figures] for one in found["partitions"]] == [
        [1, 3, 100, 97, 0, 97, 100],
        [2, 42, 100, 58, 0, 58, 100],
    ]
    assert committed_offsets(kafka, group, topic, 3) == [40, 100, 100]


@pytest.mark.real_kafka
def test_a_time_is_of_each_partition(kafka: Kafka, tmp_path: Path) -> None:
    """A time moves each partition to its first record at or after it, or to its end, also without offsets yet."""
    topic, now = create_topic(kafka, 3), int(time.time()) * 1000
    for partition, ages in enumerate([[90, 60, 30], [90, 80], []]):
        for age in ages:
            produce(kafka, topic, [b"a"], partition=partition, timestamp=now - age * 1000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now / 1000 - 60))
    env = environment(tmp_path, kafka, topic, new_group())
    found = document("set", "--to", moment, "--yes", env=env)["partitions"]
    assert [(one["before"], one["after"], one["committed"]) for one in found] == [
        (None, offset, offset) for offset in (1, 2, 0)
    ]


@pytest.mark.real_kafka
def test_dead_letter_topics_of_a_pattern_are_not_touched(kafka: Kafka, tmp_path: Path) -> None:
    """Neither those that a pattern matches nor those that the group has offsets for."""
    topic, group = create_topic(kafka), new_group()
    letters = create_topic(kafka, name=f"{topic}.dead-letters")
    for name in (topic, letters):
        produce(kafka, name, [b"a"] * 3)
        commit(kafka, group, name, 1)
    for topics in (f"^{topic}.*", ""):
        found = document("set", "--to", "end", env=environment(tmp_path, kafka, topics, group))
        assert [one["topic"] for one in found["partitions"]] == [topic]


@pytest.mark.real_kafka
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_refused_while_the_service_runs(kafka: Kafka, api: Api, tmp_path: Path, protocol: str) -> None:
    """With exit code 1 and one line that names the members, under both group protocols."""
    topic, group = new_topic(kafka), new_group()
    write_events(kafka, topic, (commerce_event(f"e{number}") for number in range(20)))
    env = run_environment(tmp_path, kafka, topic, group, api.url, KAFKA_GROUP_PROTOCOL=protocol)
    with Process(tmp_path, "run", env=env) as process:
        process.until_settled(20)
        process.until(lambda: sum(committed_offsets(kafka, group, topic)) == 20, "the commits")
        for more in ((), ("--yes",), ("--json", "--yes")):
            code, line = refused("set", "--to", "beginning", *more, env=env)
            assert code == 1
            assert f"the group {group} has 1 active member (pinstream on 127.0.0.1): stop" in line
        shown = document("show", env=env)
        assert [one["client_id"] for one in shown["members"]] == ["pinstream"]
        assert sum(committed_offsets(kafka, group, topic)) == 20
        assert process.stop()[0] == 0


def test_the_brokers_own_refusal_gives_the_same_line(embedded_kafka: Kafka, tmp_path: Path) -> None:
    """Where members cannot be listed, as on the embedded broker, the broker refuses the write."""
    topic, group = create_topic(embedded_kafka), new_group()
    produce(embedded_kafka, topic, [b"a"])
    env = environment(tmp_path, embedded_kafka, topic, group)
    own = {"group.id": group, "group.protocol": "consumer", "auto.offset.reset": "earliest", "log_level": 0}
    member = Consumer({**embedded_kafka.config, **own})
    try:
        member.subscribe([topic])
        wait_for(lambda: member.poll(0.1), "a record of its own")
        code, line = refused("set", "--to", "end", "--yes", "--json", env=env)
    finally:
        member.close()
    assert code == 1
    assert f"the group {group} has active members" in line
    assert "stop every member first" in line
    done = command("offsets", "show", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "these brokers do not list its members" in done.stdout


@pytest.mark.slow("four runs of the service")
@pytest.mark.real_kafka
def test_the_next_run_obeys(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """To the beginning: all again, none sent; to the end: no old ones; to a map: also what that says is settled."""
    topic, group = new_topic(kafka, 1), new_group()
    write_events(kafka, topic, (commerce_event(f"e{number}") for number in range(40)))
    env = run_environment(tmp_path, kafka, topic, group, api.url)

    def run(records: int) -> dict[str, int]:
        with Process(tmp_path, "run", env=env) as process:
            ledger = process.until_settled(records)
            assert process.stop()[0] == 0
            assert process.log[-1]["read"] == records
        return ledger

    assert run(40)["delivered"] == 40
    calls = api.calls
    assert document("set", "--to", "beginning", "--yes", env=env)["read_again"] == 40
    assert committed_offsets(kafka, group, topic, 1) == [0]
    ledger = run(40)
    assert (ledger["duplicate"], ledger["delivered"], api.calls) == (40, 0, calls)

    write_events(kafka, topic, (commerce_event(f"late{number}") for number in range(10)))
    assert document("set", "--to", "end", "--yes", env=env)["skipped"] == 10
    write_events(kafka, topic, [commerce_event("after")])
    assert run(1)["delivered"] == 1

    commit_map(kafka, group, topic, 42, 44, 50)
    found = document("set", "--to", "offset:42", "--yes", env=env)
    assert (found["read_again"], found["skipped"], found["partitions"][0]["change"]) == (6, 0, 0)
    ledger = run(9)
    assert (ledger["delivered"], ledger["duplicate"]) == (8, 1)
    sent = {f"e{number}" for number in range(40)} | {f"late{number}" for number in range(2, 10)} | {"after"}
    assert set(api.accepted()) == sent
