"""``pinstream dead-letters list`` and ``show`` print which letters there are and why, and never a person's data."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from consumer.adapters.kafka.letters import mark_headers
from consumer.commands import main
from consumer.commands.dead_letters.listing import print_listing, read_listing
from consumer.commands.dead_letters.reading import chosen
from consumer.engine.model import Stage
from consumer.errors import UsageError
from consumer.settings import load
from tests.commands.dead_letters.fakes import Topics, dead_letters, home
from tests.end_to_end.processes import bare_environment, command, the_one_line
from tests.end_to_end.records import ENCODER, new_group, new_topic
from tests.end_to_end.replay.redriving import asked, bury, kafka_environment, letter
from tests.end_to_end.test_personal_data import CUSTOMER, EMAIL, MARK, found_in, marked
from tests.support.kafka.harness import Kafka, create_topic, produce

# ------------------------------------------------------------------------------------------- which topics

KNOWN = ["__consumer_offsets", "orders", "orders.dead-letters", "returns", "gone.dead-letters", "shop-eu",
         "shop-eu.dead-letters"]  # fmt: skip


def names(*topics: str, template: str = "{topic}.dead-letters", configured: str = "orders") -> dict[str, Any]:
    """Return the dead-letter topics meant by ``--topic``, with the origins of each."""
    env = {"KAFKA_BOOTSTRAP_SERVERS": "b:1", "PINSTREAM_DEAD_LETTER_TOPIC": template, "HOME": "/"}
    settings = load({**env, **({"KAFKA_TOPICS": configured} if configured else {})}, needs=("kafka",))
    return {
        name: None if None in origins else origins
        for name, origins in chosen(settings, topics, KNOWN).items()
    }


@pytest.mark.parametrize(
    ("asked_for", "template", "found"),
    [
        ((), "{topic}.dead-letters", {"orders.dead-letters": {"orders"}}),
        (("returns",), "{topic}.dead-letters", {"returns.dead-letters": {"returns"}}),
        (("orders.dead-letters", "orders"), "{topic}.dead-letters", {"orders.dead-letters": {"orders"}}),
        # A pattern also finds origins of which only letters are left.
        (("^o.*|^gone",), "{topic}.dead-letters",
            {"orders.dead-letters": {"orders"}, "gone.dead-letters": {"gone"}}),
        # On a topic for all, an origin's name means its letters, and the topic's own name all of them.
        (("orders", "returns"), "gone.dead-letters", {"gone.dead-letters": {"orders", "returns"}}),
        (("gone.dead-letters",), "gone.dead-letters", {"gone.dead-letters": None}),
        (("gone.dead-letters", "orders"), "gone.dead-letters", {"gone.dead-letters": None}),
    ],
)  # fmt: skip
def test_topics_are_those_of_the_settings_or_of_the_command_line(
    asked_for: tuple[str, ...], template: str, found: dict[str, set[str] | None]
) -> None:
    """``--topic`` names an origin, a dead-letter topic or a pattern; without it the settings count."""
    assert names(*asked_for, template=template) == found
    assert set(names("^.*")).isdisjoint({"__consumer_offsets.dead-letters"})
    assert set(names(configured="^shop-,new")) == {"new.dead-letters", "shop-eu.dead-letters"}


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("ordres", "nearest that does is orders"),
        ("nowhere.dead-letters", "--topic nowhere"),
        ("^(", r"--topic \^\(: the pattern cannot be read"),
        (None, "KAFKA_TOPICS"),
    ],
)
def test_wrong_topics_are_refused(topic: str | None, said: str) -> None:
    """A mistyped topic names the nearest; a pattern that cannot be read, and no topic at all, are errors, too."""
    with pytest.raises(UsageError, match=said):
        names(*filter(None, [topic]), configured="orders" if topic else "")


# ---------------------------------------------------------------------------------------------------- list


async def test_counting_is_by_origin_stage_and_code() -> None:
    """Waiting and done letters are counted, with the oldest and the latest; other records are counted apart."""
    where = Topics(orders=1)
    where.partitions["orders.dead-letters"] = 2
    for number in range(6):
        where.bury(number, partition=number % 2, code="expired" if number < 2 else "no_identity")
    where.append("orders.dead-letters", 0, b"k", b"v", mark_headers([(0, 2)], home("orders.dead-letters")))
    elsewhere = home("orders.dead-letters")._replace(cluster="there")
    where.append("orders.dead-letters", 0, b"k", b"v", mark_headers([(0, 9)], elsewhere))
    where.append("orders.dead-letters", 1, b"k", b"v")
    document = await read_listing([dead_letters(where)], 3)
    assert [tuple(count.values()) for count in document["counts"]] == [
        ("orders", "convert", "expired", 1, 1, "2023-11-14T22:13:20Z", "2023-11-14T22:13:21Z"),
        ("orders", "convert", "no_identity", 3, 1, "2023-11-14T22:13:22Z", "2023-11-14T22:13:25Z"),
    ]
    assert [document[name] for name in ("waiting", "done", "foreign", "elsewhere")] == [4, 2, 1, 1]
    places = [f"orders.dead-letters:{place}" for place in ("1:2", "0:2", "1:1")]
    assert [line["place"] for line in document["latest"]] == places


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
    """On a narrow terminal numbers and names are whole; what does not fit a table is printed without one."""
    code = "unsupported_action_source_and_more"
    text = printed(topic, code, width, waiting)
    assert "…" not in text
    for whole in (f"{waiting:,}", "4,321", "convert", "2023-11-14"):
        assert whole in text
    assert all(part in text for part in (topic[:12], code[:12]))
    assert topic[0] != "x" or text.count("x") == len(topic)
    if width >= 100 and waiting == 7 and topic == "orders":
        assert "oldest" in text


def bury_personal(kafka: Kafka, folder: Path) -> tuple[str, dict[str, str]]:
    """Bury letters of events that have a mark in every field; return their topic and the command's environment."""
    topic, whole = new_topic(kafka), ENCODER.encode(marked("event"))
    personal = {"key": EMAIL.encode(), "headers": ((MARK, EMAIL.encode()), ("plain", b"x"))}
    undecodable = {"stage": Stage.DECODE, **personal}
    letters = [
        letter(topic, 0, value=whole, **personal),
        letter(topic, 1, value=whole, code="expired", message=f"no {EMAIL} there", attempts=2, **personal),
        letter(topic, 2, value=whole[: len(whole) // 2], code="undecodable", **undecodable),
        letter(topic, 3, value=None, key=None),
        letter(topic, 4, value=b"\xc3\x01" + b"\x11" * 20, code="no_such_schema", **undecodable),
    ]
    bury(kafka, letters)
    produce(kafka, f"{topic}.dead-letters", [EMAIL.encode()], partition=3, key=MARK.encode())
    return topic, kafka_environment(folder, kafka, topic, new_group(), COLUMNS="80")


def facts_of(topic: str) -> dict[str, Any]:
    """What is said of the letter with number 1."""
    return {
        "place": f"{topic}.dead-letters:1:0", "at": "2023-11-14T22:13:21Z", "stage": "convert", "code": "expired",
        "message": "no *** there", "origin": f"{topic}:1:1", "attempts": 2, "trips": 0, "state": "waiting",
    }  # fmt: skip


def test_list_prints_no_content_of_letters(each_kafka: Kafka, tmp_path: Path) -> None:
    """``list`` prints counts and the latest letters, by the same filters as ``redrive``, and no value of a person."""
    topic, env = bury_personal(each_kafka, tmp_path)
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
    assert [one["origin"] for one in latest] == [f"{topic}:{one % 4}:{one}" for one in (4, 3, 2, 1, 0)]
    assert latest[3] == facts_of(topic)
    assert found_in(done.stdout + json.dumps(document)) == []

    def numbers(*arguments: str) -> list[int]:
        line = ["dead-letters", "list", "--json", *arguments]
        listed = CliRunner(env=dict.fromkeys(os.environ) | env).invoke(main, line)
        assert (listed.exit_code, listed.stderr) == (0, "")
        return sorted(int(one["origin"].rpartition(":")[2]) for one in json.loads(listed.stdout)["latest"])

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


def test_show_prints_no_content_but_the_masked_payload(kafka: Kafka, tmp_path: Path) -> None:
    """Sizes and names of headers; with ``--payload`` what was bought, or why it cannot be decoded."""
    topic, env = bury_personal(kafka, tmp_path)
    letters = f"{topic}.dead-letters"
    document = asked("show", f"{letters}:1:0", env=env)
    sizes = {"key_bytes": len(EMAIL), "value_bytes": len(ENCODER.encode(marked("event")))}
    more = {"timestamp": "2023-11-14T22:13:15Z", "headers": [MARK, "plain"], "left_out": [], **sizes}
    assert document == facts_of(topic) | more
    table = command("dead-letters", "show", f"{letters}:1:0", env=env).stdout
    assert "convert: expired" in table
    assert found_in(table.replace(f"{MARK}, plain", "")) == []

    record = asked("show", f"{letters}:0:0", "--payload", env=env)["payload"]["record"]
    assert (record["event_id"], record["channel"], record["order"]["currency"]) == ("event", "WEB", "EUR")
    assert set(record["customer"]) == set(CUSTOMER)
    assert record["customer"]["emails"] == record["customer"]["phones"] == ["***"]
    text = command("dead-letters", "show", f"{letters}:0:0", "--payload", env=env).stdout
    assert json.loads(text[text.index("{\n") :]) == record
    for hidden in ("customer", "page_url", "search_query", "device"):
        assert found_in(json.dumps(record[hidden])) == []

    half = asked("show", f"{letters}:2:0", "--payload", env=env)["payload"]
    assert (half["record"], half["undecodable"]["code"]) == (None, "undecodable")
    assert half["schema"].startswith("fingerprint ")
    unknown = asked("show", f"{letters}:0:1", "--payload", env=env)["payload"]
    assert unknown["undecodable"]["code"] == "no_such_schema"
    assert (unknown["schema"], unknown["value_bytes"]) == ("fingerprint " + "11" * 8, 22)
    done = command("dead-letters", "show", f"{letters}:2:0", "--payload", env=env)
    assert "cannot be decoded: undecodable" in done.stdout
    assert found_in(done.stdout.replace(f"{MARK}, plain", "")) == []
    tombstone = asked("show", f"{letters}:3:0", "--payload", env=env)
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


# -------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "orders"), "TOPIC:PARTITION:OFFSET"),
        (("list", "--origin", "orders:x"), "TOPIC:PARTITION"),
        (("list", "--since", "yesterday"), "--since 'yesterday' cannot be read: use an ISO 8601"),
        (("redrive", "--since", "2026-01-02", "--until", "2026-01-01"), "before --until"),
        (("redrive", "--rate", "fast"), "100/s"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    """Wrong arguments are an error in one line with exit code 2, before any broker is asked."""
    env = {**bare_environment(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "KAFKA_TOPICS": "orders"}
    done = command("dead-letters", *arguments, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in the_one_line(done.stderr)


def test_places_that_are_not_there_are_one_line(kafka: Kafka, tmp_path: Path) -> None:
    """The line says what exists, and names no option that ``show`` lacks."""
    topic = new_topic(kafka)
    bury(kafka, [letter(topic, 0)])
    produce(kafka, topic, [b"a record"])
    env = kafka_environment(tmp_path, kafka, topic, new_group())
    letters, nothing = f"{topic}.dead-letters", {**env, "KAFKA_TOPICS": ""}
    for arguments, says, of in (
        (("show", f"{topic}.dead-lettres:0:0"), letters, env),
        (("show", f"{letters}:9:0"), "partitions 0 to 3", env),
        (("show", f"{letters}:0:7"), "holds 0 to 0", env),
        (("show", f"{letters}:1:0"), "holds nothing", env),
        (("show", f"{topic}:0:0"), "no dead letter of ours", env),
        (("list", "--topic", f"{topic}x"), f"nearest that does is {topic}", env),
        (("redrive", "--dry-run"), "KAFKA_TOPICS", nothing),
    ):
        done = command("dead-letters", *arguments, env=of)
        assert done.returncode == 2
        assert says in the_one_line(done.stderr)
        assert arguments[0] != "show" or "--topic" not in done.stderr
