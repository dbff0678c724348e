"""``pinstream dead-letters list`` and ``show`` print which letters there are and why, and never a person's data."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from consumer.adapters.kafka.letters import Place, mark_headers
from consumer.commands import main
from consumer.commands.dead_letters.listing import print_listing, read_listing
from consumer.commands.dead_letters.reading import LetterReader, chosen
from consumer.engine.model import Stage
from consumer.errors import UsageError
from consumer.settings import load
from tests.commands.dead_letters.fakes import Topics, dead_letters, home
from tests.end_to_end.processes import bare_environment, command, the_one_line
from tests.end_to_end.records import ENCODER, new_group, new_topic
from tests.end_to_end.replay.redriving import asked, bury, kafka_environment, letter
from tests.end_to_end.test_personal_data import CUSTOMER, EMAIL, MARK, found_in, marked
from tests.support.kafka.harness import Kafka, create_topic, produce, unique

# ------------------------------------------------------------------------------------------- which topics

KNOWN = dict.fromkeys(
    (
        "__consumer_offsets",
        "orders",
        "orders.dead-letters",
        "returns",
        "gone.dead-letters",
        "shop-eu",
        "shop-eu.dead-letters",
    ),
    1,
)


def names(*topics: str, template: str = "{topic}.dead-letters", configured: str = "orders") -> dict[str, Any]:
    """Return the dead-letter topics meant by ``--topic``, with the origins of each."""
    env = {"KAFKA_BOOTSTRAP_SERVERS": "b:1", "PINSTREAM_DEAD_LETTER_TOPIC": template, "HOME": "/"}
    settings = load({**env, **({"KAFKA_TOPICS": configured} if configured else {})}, needs=("kafka",))
    return {
        name: None if None in origins else origins
        for name, origins in chosen(settings, topics, KNOWN).items()
    }


def test_topics_are_those_of_the_settings_or_of_the_command_line() -> None:
    """``--topic`` names an origin, a dead-letter topic or a pattern, which also finds origins of which only
    letters are left; without it the settings count."""
    assert names() == {"orders.dead-letters": {"orders"}}
    assert names("returns") == {"returns.dead-letters": {"returns"}}
    assert names("orders.dead-letters", "orders") == {"orders.dead-letters": {"orders"}}
    assert names("^o.*|^gone") == {"orders.dead-letters": {"orders"}, "gone.dead-letters": {"gone"}}
    assert set(names("^.*")).isdisjoint({"__consumer_offsets.dead-letters"})
    assert set(names(configured="^shop-,new")) == {"new.dead-letters", "shop-eu.dead-letters"}


def test_one_dead_letter_topic_for_all() -> None:
    """Where all origins share a dead-letter topic, an origin's name means its letters, and the topic's own name
    all letters on it."""
    assert names("orders", "returns", template="gone.dead-letters") == {
        "gone.dead-letters": {"orders", "returns"}
    }
    assert names("gone.dead-letters", template="gone.dead-letters") == {"gone.dead-letters": None}
    assert names("gone.dead-letters", "orders", template="gone.dead-letters") == {"gone.dead-letters": None}


def test_wrong_topics_are_refused() -> None:
    """A mistyped topic is an error that names the nearest; so are a pattern that cannot be read, and no topic
    at all."""
    with pytest.raises(UsageError, match="nearest that does is orders"):
        names("ordres")
    with pytest.raises(UsageError, match="--topic nowhere"):
        names("nowhere.dead-letters")
    with pytest.raises(UsageError, match=r"--topic \^\(: the pattern cannot be read"):
        names("^(")
    with pytest.raises(UsageError, match="KAFKA_TOPICS"):
        names(configured="")


# ---------------------------------------------------------------------------------------------------- list


async def test_counting_is_by_origin_stage_and_code() -> None:
    """Waiting and done letters are counted by origin, stage and code, with the oldest and the latest; other
    records are counted apart. The latest letters come first."""
    where = Topics(orders=1)
    where.partitions["orders.dead-letters"] = 2
    for number in range(6):
        where.bury(number, partition=number % 2, code="expired" if number < 2 else "no_identity")
    where.append("orders.dead-letters", 0, b"k", b"v", mark_headers([(0, 2)], home("orders.dead-letters")))
    elsewhere = home("orders.dead-letters")._replace(cluster="there")
    where.append("orders.dead-letters", 0, b"k", b"v", mark_headers([(0, 9)], elsewhere))
    where.append("orders.dead-letters", 1, b"k", b"v")
    document = await read_listing([dead_letters(where)], 3)
    names = ("topic", "stage", "code", "waiting", "done")
    assert [tuple(count[name] for name in names) for count in document["counts"]] == [
        ("orders", "convert", "expired", 1, 1),
        ("orders", "convert", "no_identity", 3, 1),
    ]
    assert (document["foreign"], document["elsewhere"]) == (1, 1)
    assert [line["place"] for line in document["latest"]] == [
        "orders.dead-letters:1:2",
        "orders.dead-letters:0:2",
        "orders.dead-letters:1:1",
    ]
    assert (document["waiting"], document["done"]) == (4, 2)
    assert document["counts"][0] | {"topic": ""} == {
        "topic": "",
        "stage": "convert",
        "code": "expired",
        "waiting": 1,
        "done": 1,
        "oldest": "2023-11-14T22:13:20Z",
        "latest": "2023-11-14T22:13:21Z",
    }


async def test_any_number_of_codes_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number of codes, letters are counted together; of the latest letters no key or value is kept."""
    monkeypatch.setattr("consumer.commands.dead_letters.listing.MAX_KINDS", 5)
    where = Topics(letters=1)
    for number in range(50):
        where.bury(number, code=f"code-{number}", on="letters")
    document = await read_listing([dead_letters(where, of=None)], 4)
    assert sorted(count["waiting"] for count in document["counts"]) == [1, 1, 1, 1, 1, 45]
    assert {type(kept) for facts in document["latest"] for kept in facts.values()} == {str, int}


TOPICS = ("orders", "a-team.with-a-long-name.orders-of-all-the-shops-of-europe.v2", "x" * 249)


def printed(topic: str, code: str, width: int, waiting: int = 7) -> str:
    """Return the listing of letters of one kind, on a terminal of this width."""
    count = {"topic": topic, "stage": "convert", "code": code, "waiting": waiting, "done": 4321}
    times = dict.fromkeys(("oldest", "latest"), "2023-11-14T22:13:20Z")
    none: dict[str, Any] = {"latest": [], "foreign": 0, "elsewhere": 0, "no_dead_letters": []}
    file = io.StringIO()
    print_listing({**none, "counts": [{**count, **times}]}, Console(file=file, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100, 140])
@pytest.mark.parametrize("waiting", [7, 1_234_567_890])
@pytest.mark.parametrize("topic", TOPICS)
def test_nothing_is_cut_however_narrow(width: int, waiting: int, topic: str) -> None:
    """On a narrow terminal numbers are whole and names are broken over lines; what does not fit a table is
    printed without one."""
    code = "unsupported_action_source_and_more"
    text = printed(topic, code, width, waiting)
    assert "…" not in text
    for whole in (f"{waiting:,}", "4,321", "convert", "2023-11-14"):
        assert whole in text
    assert all(part in text for part in (topic[:12], code[:12]))
    assert topic[0] != "x" or text.count("x") == len(topic)
    if width >= 80 and waiting == 7 and topic == "orders":
        assert "oldest" in text


@pytest.mark.parametrize("topic", TOPICS)
def test_a_code_of_ours_stands_whole(topic: str) -> None:
    """At the usual width of a terminal a code is printed whole, since people copy it into ``--code``."""
    assert "unknown_action_source" in printed(topic, "unknown_action_source", width=80)


@pytest.fixture
def buried(each_kafka: Kafka, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """A topic with letters of events that have a mark in every field, and the environment of the command."""
    topic = new_topic(each_kafka)
    whole = ENCODER.encode(marked("event"))
    personal = {"key": EMAIL.encode(), "headers": ((MARK, EMAIL.encode()), ("plain", b"x"))}
    bury(
        each_kafka,
        [
            letter(topic, 0, value=whole, **personal),
            letter(
                topic, 1, value=whole, code="expired", message=f"no {EMAIL} there", attempts=2, **personal
            ),
            letter(
                topic, 2, value=whole[: len(whole) // 2], stage=Stage.DECODE, code="undecodable", **personal
            ),
            letter(topic, 3, value=None, key=None),
            letter(
                topic,
                4,
                value=b"\xc3\x01" + b"\x11" * 20,
                stage=Stage.DECODE,
                code="no_such_schema",
                **personal,
            ),
        ],
    )
    produce(each_kafka, f"{topic}.dead-letters", [EMAIL.encode()], partition=3, key=MARK.encode())
    return topic, kafka_environment(tmp_path, each_kafka, topic, new_group(), COLUMNS="80")


def test_list_prints_no_content_of_letters(buried: tuple[str, dict[str, str]]) -> None:
    """``list`` prints counts and the latest letters, and no marked value, neither in the table nor in the JSON."""
    topic, env = buried
    done = command("dead-letters", "list", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    for text in (
        "unknown_currency",
        "undecodable",
        f"{topic}.dead-letters:1:0",
        f"{topic}:1:1",
        "no *** there",
    ):
        assert text in done.stdout
    assert "1 other records" in done.stdout
    document = asked("list", env=env)
    assert [(one["stage"], one["code"], one["waiting"]) for one in document["counts"]] == [
        ("convert", "expired", 1),
        ("convert", "unknown_currency", 2),
        ("decode", "no_such_schema", 1),
        ("decode", "undecodable", 1),
    ]
    assert (document["waiting"], document["done"], document["foreign"]) == (5, 0, 1)
    latest = document["latest"]
    assert [one["origin"] for one in latest] == [
        f"{topic}:{number % 4}:{number}" for number in (4, 3, 2, 1, 0)
    ]
    assert latest[3] == {
        "place": f"{topic}.dead-letters:1:0",
        "at": "2023-11-14T22:13:21Z",
        "stage": "convert",
        "code": "expired",
        "message": "no *** there",
        "origin": f"{topic}:1:1",
        "attempts": 2,
        "trips": 0,
        "state": "waiting",
    }
    assert found_in(done.stdout + json.dumps(document)) == []


def in_process(*arguments: str, env: dict[str, str]) -> Result:
    """Run a command of dead letters in this process: starting one takes longer than the run."""
    nothing: dict[str, str | None] = dict.fromkeys(os.environ)
    return CliRunner(env=nothing | env).invoke(main, ["dead-letters", *arguments])


def test_list_filters(buried: tuple[str, dict[str, str]]) -> None:
    """``list`` takes the same filters as ``redrive``."""
    topic, env = buried

    def numbers(*arguments: str) -> list[int]:
        listed = in_process("list", "--json", *arguments, env=env)
        assert (listed.exit_code, listed.stderr) == (0, "")
        latest = json.loads(listed.stdout)["latest"]
        return sorted(int(one["origin"].rpartition(":")[2]) for one in latest)

    assert numbers("--stage", "decode") == [2, 4]
    assert numbers("--code", "expired", "--code", "undecodable") == [1, 2]
    assert numbers("--since", "2023-11-14T22:13:21Z", "--until", "2023-11-14T22:13:23Z") == [1, 2]
    assert numbers("--origin", f"{topic}:0") == [0, 4]
    assert numbers("--origin", f"{topic}:0:4") == [4]
    assert numbers("--latest", "2") == [3, 4]
    assert numbers("--latest", "0") == []
    assert numbers("--topic", f"{topic}.dead-letters", "--origin", f"{topic}:3") == [3]


def test_no_dead_letters_is_no_error(each_kafka: Kafka, tmp_path: Path) -> None:
    """A topic without a dead-letter topic, and one whose dead-letter topic is empty, are no error."""
    empty, none = new_topic(each_kafka), create_topic(each_kafka)
    env = kafka_environment(tmp_path, each_kafka, f"{empty},{none}", new_group())
    done = command("dead-letters", "list", env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{none}.dead-letters: no dead letters" in done.stdout
    assert asked("list", env=env)["no_dead_letters"] == [f"{none}.dead-letters"]
    assert asked("redrive", "--dry-run", env=env)["matched"] == 0


# ---------------------------------------------------------------------------------------------------- show


def test_show_prints_origin_and_reason(buried: tuple[str, dict[str, str]]) -> None:
    """``show`` prints sizes and the names of the record's own headers, and no content."""
    topic, env = buried
    document = asked("show", f"{topic}.dead-letters:1:0", env=env)
    assert document | {"headers": [], "value_bytes": 0} == {
        "place": f"{topic}.dead-letters:1:0",
        "state": "waiting",
        "origin": f"{topic}:1:1",
        "stage": "convert",
        "code": "expired",
        "message": "no *** there",
        "attempts": 2,
        "trips": 0,
        "at": "2023-11-14T22:13:21Z",
        "timestamp": "2023-11-14T22:13:15Z",
        "key_bytes": len(EMAIL),
        "value_bytes": 0,
        "headers": [],
        "left_out": [],
    }
    assert document["headers"] == [MARK, "plain"]
    table = command("dead-letters", "show", f"{topic}.dead-letters:1:0", env=env).stdout
    assert "convert: expired" in table
    assert found_in(table.replace(f"{MARK}, plain", "")) == []


def test_show_payload_masks(buried: tuple[str, dict[str, str]]) -> None:
    """``show --payload`` prints the record as JSON with what was bought, and masks who bought it."""
    topic, env = buried
    place = f"{topic}.dead-letters:0:0"
    record = asked("show", place, "--payload", env=env)["payload"]["record"]
    assert record["event_id"] == "event"
    assert record["channel"] == "WEB"
    assert record["order"]["currency"] == "EUR"
    assert set(record["customer"]) == set(CUSTOMER)
    assert record["customer"]["emails"] == record["customer"]["phones"] == ["***"]
    text = command("dead-letters", "show", place, "--payload", env=env).stdout
    shown = json.loads(text[text.index("{\n") :])
    assert shown == record
    for hidden in ("customer", "page_url", "search_query", "device"):
        assert found_in(json.dumps(record[hidden])) == []


def test_show_payload_of_what_cannot_be_decoded(buried: tuple[str, dict[str, str]]) -> None:
    """For a record that cannot be decoded ``show --payload`` prints why, how it is framed and how large it is,
    and none of its bytes."""
    topic, env = buried
    half = asked("show", f"{topic}.dead-letters:2:0", "--payload", env=env)["payload"]
    assert (half["record"], half["undecodable"]["code"]) == (None, "undecodable")
    assert half["schema"].startswith("fingerprint ")
    unknown = asked("show", f"{topic}.dead-letters:0:1", "--payload", env=env)["payload"]
    assert unknown["undecodable"]["code"] == "no_such_schema"
    assert (unknown["schema"], unknown["value_bytes"]) == ("fingerprint " + "11" * 8, 22)
    done = command("dead-letters", "show", f"{topic}.dead-letters:2:0", "--payload", env=env)
    assert "cannot be decoded: undecodable" in done.stdout
    assert found_in(done.stdout.replace(f"{MARK}, plain", "")) == []
    tombstone = asked("show", f"{topic}.dead-letters:3:0", "--payload", env=env)
    assert (tombstone["key_bytes"], tombstone["value_bytes"]) == (None, None)
    assert "tombstone" in tombstone["payload"]["note"]


def test_show_reads_at_the_origin_what_the_letter_lacks(kafka: Kafka, tmp_path: Path) -> None:
    """What a letter lacks is read at its origin; if it is gone from there, the note says where it was."""
    topic = new_topic(kafka)
    sent = letter(topic, 0)
    produce(kafka, topic, [sent.record.value], key=sent.record.key, timestamp=sent.record.timestamp)
    bury(kafka, [sent, letter(topic, 4)], omitted=("value",))
    env = kafka_environment(tmp_path, kafka, topic, new_group())
    document = asked("show", f"{topic}.dead-letters:0:0", "--payload", env=env)
    assert document["left_out"] == ["value"]
    assert document["value_bytes"] == len(sent.record.value or b"")
    assert document["payload"]["record"]["event_id"] == "event-0"
    assert f"read at its origin, {topic}:0:0" in document["payload"]["note"]
    gone = asked("show", f"{topic}.dead-letters:0:1", "--payload", env=env)["payload"]
    assert (gone["record"], f"{topic}:0:4 is gone" in gone["note"]) == (None, True)


def test_show_of_a_topic_that_is_not_there(kafka: Kafka, tmp_path: Path) -> None:
    """The error for a place on a topic that does not exist names the topic, and not ``--topic``, which ``show``
    lacks."""
    env = kafka_environment(tmp_path, kafka, new_topic(kafka), new_group())
    done = command("dead-letters", "show", "nope:0:0", env=env)
    assert done.returncode == 2
    assert "--topic" not in the_one_line(done.stderr)
    assert "the topic nope does not exist" in the_one_line(done.stderr)


# -------------------------------------------------------------------------------------------- wrong arguments

WRONG = {
    "place": (("show", "orders"), "TOPIC:PARTITION:OFFSET"),
    "origin": (("list", "--origin", "orders:x"), "TOPIC:PARTITION"),
    "time": (("list", "--since", "yesterday"), "ISO 8601"),
    "times": (("redrive", "--since", "2026-01-02", "--until", "2026-01-01"), "before --until"),
    "rate": (("redrive", "--rate", "fast"), "100/s"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_one_line(name: str, tmp_path: Path) -> None:
    """Wrong arguments are an error in one line with exit code 2, before any broker is asked."""
    arguments, says = WRONG[name]
    env = {**bare_environment(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "KAFKA_TOPICS": "orders"}
    done = command("dead-letters", *arguments, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in the_one_line(done.stderr)


def test_an_option_that_is_gone_is_named(tmp_path: Path) -> None:
    """An option of older versions is wrong usage, named in the error, with exit code 2."""
    done = command("dead-letters", "redrive", "--through-pipeline", env=bare_environment(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such option '--through-pipeline'" in done.stderr


async def test_a_record_of_no_topic_or_partition_is_not_there(each_kafka: Kafka) -> None:
    """Reading a record of a topic or partition that does not exist returns None, since what a letter lacks may
    be deleted with its topic."""
    reader, topic = LetterReader(each_kafka.config), create_topic(each_kafka)
    produce(each_kafka, topic, [b"a record"])
    found = await reader.record(Place(topic, 0, 0))
    assert found is not None
    assert found.value == b"a record"
    for place in (Place(topic, 0, 1), Place(topic, 9, 0), Place(unique("gone"), 0, 0)):
        assert await reader.record(place) is None


def test_places_that_are_not_there_are_one_line(kafka: Kafka, tmp_path: Path) -> None:
    """A topic, partition or offset that does not exist is an error in one line that says what exists."""
    topic = new_topic(kafka)
    bury(kafka, [letter(topic, 0)])
    produce(kafka, topic, [b"a record"])
    env = kafka_environment(tmp_path, kafka, topic, new_group())
    for place, says in {
        f"{topic}.dead-lettres:0:0": f"{topic}.dead-letters",
        f"{topic}.dead-letters:9:0": "partitions 0 to 3",
        f"{topic}.dead-letters:0:7": "holds 0 to 0",
        f"{topic}.dead-letters:1:0": "holds nothing",
        f"{topic}:0:0": "no dead letter of ours",
    }.items():
        done = command("dead-letters", "show", place, env=env)
        assert done.returncode == 2
        assert says in the_one_line(done.stderr)
    done = command("dead-letters", "list", "--topic", f"{topic}x", env=env)
    assert done.returncode == 2
    assert f"nearest that does is {topic}" in the_one_line(done.stderr)
    nothing = {name: value for name, value in env.items() if name != "KAFKA_TOPICS"}
    done = command("dead-letters", "redrive", "--dry-run", env=nothing)
    assert done.returncode == 2
    assert "KAFKA_TOPICS" in the_one_line(done.stderr)


def test_no_broker_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable broker is an error in one line that names it and what to check."""
    monkeypatch.setattr("consumer.commands.dead_letters.reading._TIMEOUT", 1.0)
    env = kafka_environment(tmp_path, Kafka("127.0.0.1:9", "external"), unique("topic"), new_group())
    done = in_process("list", env=env)
    assert done.exit_code == 1
    assert "KAFKA_BOOTSTRAP_SERVERS" in the_one_line(done.stderr)
