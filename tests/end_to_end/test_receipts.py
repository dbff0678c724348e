"""Receipts from processes on a broker: each record has one, it says what the API says, and it waits out an outage."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.end_to_end.api import Api, Loop, Registry
from tests.end_to_end.processes import ACCOUNT, Process, command, run_environment
from tests.end_to_end.records import (
    commerce_event,
    committed_offsets,
    dead_letters,
    generated,
    new_group,
    new_topic,
    receipts_on,
    write,
    write_events,
    write_generated,
)
from tests.end_to_end.test_personal_data import EMAIL, OF_A_PERSON, EchoingApi, found_in, marked_records
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, read_all

pytestmark = pytest.mark.real_kafka

OUTCOMES = ("delivered", "duplicate", "filtered", "dead_lettered")
FILTER = '[event_names]\nproduct_viewed = "!filter"\n'


def environment(folder: Path, kafka: Kafka, api: Api, topic: str, **settings: str) -> dict[str, str]:
    """What `run` needs, with receipts."""
    receipts = {"PINSTREAM_RECEIPTS_TOPIC": f"{topic}.receipts"}
    return run_environment(folder, kafka, topic, new_group(), api.url, **{**receipts, **settings})


def serve(folder: Path, env: dict[str, str], records: int) -> dict[str, int]:
    """Run until all records are settled; return the ledger."""
    with Process(folder, "run", env=env) as process:
        ledger = process.until_settled(records)
        assert process.stop()[0] == 0
    return ledger


def tally(receipts: list[dict[str, Any]]) -> dict[str, int]:
    """How many receipts there are of each outcome."""
    found = Counter(one["outcome"] for one in receipts)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def test_each_record_has_a_receipt_that_says_what_became_of_it(
    kafka: Kafka, api: Api, tmp_path: Path
) -> None:
    """Of a shop with duplicates, filtered and broken events, through batches that are divided: exactly one receipt for
    each record, outcomes as the ledger counts them, ids and values as the API has them. A second run after a stop in
    order writes none again."""
    topic, mapping = new_topic(kafka), tmp_path / "mapping.toml"
    mapping.write_text(FILTER)
    _, events = generated(800, seed=5, duplicates=0.1, invalid=0.05)
    write_generated(kafka, topic, events)
    env = environment(
        tmp_path, kafka, api, topic, PINSTREAM_MAPPING_FILE=str(mapping), PINSTREAM_BATCH_EVENTS="50"
    )
    ledger = serve(tmp_path, env, len(events))
    receipts = receipts_on(kafka, f"{topic}.receipts")
    places = {(one["topic"], one["partition"], one["offset"]) for one in receipts}
    assert len(receipts) == len(places) == len(events)
    assert tally(receipts) == {outcome: ledger[outcome] for outcome in OUTCOMES}
    assert min(ledger[outcome] for outcome in OUTCOMES) > 0
    delivered = [one for one in receipts if one["outcome"] == "delivered"]
    assert Counter(one["event_id"] for one in delivered) == api.accepted()
    assert sum(Decimal(one["value"] or 0) for one in delivered) == api.counts().value_sum
    assert {(one["by"], one["group"], one["test"]) for one in receipts} == {
        ("run", env["KAFKA_GROUP_ID"], False)
    }
    assert {(one["http_status"], one["attempts"], one["ad_account"]) for one in delivered} == {
        (200, 1, ACCOUNT)
    }
    assert all(one["request_id"] and one["answered_at"] >= one["event_time"] for one in delivered)
    # Also of what was not sent the ids are there, if they can be read.
    filtered = [one for one in receipts if one["outcome"] == "filtered"]
    assert all(one["event_id"] and one["code"] == "event_name" for one in filtered)
    letters = {
        (one["partition"], one["offset"]): one["code"]
        for one in receipts
        if one["outcome"] == "dead_lettered"
    }
    assert letters == {
        (int(of["partition"]), int(of["offset"])): of["code"] for _, of in dead_letters(kafka, topic)
    }
    write_events(kafka, topic, [commerce_event("one-more")])
    serve(tmp_path, env, 1)
    assert len(receipts_on(kafka, f"{topic}.receipts")) == len(events) + 1


def test_a_replay_and_a_redrive_write_receipts_and_a_dry_run_none(
    kafka: Kafka, api: Api, tmp_path: Path
) -> None:
    """They say who decided. A redrive's is of the letter, and names the record that died."""
    topic = new_topic(kafka)
    broken = commerce_event("broken", order={"order_id": "o-2", "currency": "XXX", "total": "1", "items": []})
    write_events(kafka, topic, [commerce_event("fine"), broken])
    env, on = environment(tmp_path, kafka, api, topic), f"{topic}.receipts"
    everything = ("--topic", topic, "--from", "beginning", "--to", "end")
    assert command("replay", *everything, "--dry-run", env=env).returncode == 0
    assert receipts_on(kafka, on) == []
    serve(tmp_path, env, 2)
    assert command("replay", *everything, env=env).returncode == 0
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[constants]\n"custom_data.currency" = "EUR"\n[fields]\n"custom_data.currency" = ""\n')
    env["PINSTREAM_MAPPING_FILE"] = str(mapping)
    assert command("dead-letters", "redrive", "--topic", topic, "--dry-run", env=env).returncode == 0
    assert len(receipts_on(kafka, on)) == 4
    done = command("dead-letters", "redrive", "--topic", topic, env=env)
    assert done.returncode == 0, done.stderr
    receipts = receipts_on(kafka, on)
    said = Counter((one["by"], one["outcome"], one["event_id"]) for one in receipts)
    # The replay found the broken one again, and wrote a second letter.
    assert said == {
        ("run", "delivered", "fine"): 1,
        ("run", "dead_lettered", "broken"): 1,
        ("replay", "duplicate", "fine"): 1,
        ("replay", "dead_lettered", "broken"): 1,
        ("redrive", "delivered", "broken"): 1,
        ("redrive", "duplicate", "broken"): 1,
    }
    [origin] = {one["origin"] for one in receipts if one["by"] == "redrive"}
    [place] = {
        (one["topic"], one["partition"], one["offset"])
        for one in receipts
        if one["outcome"] == "dead_lettered"
    }
    assert origin == "{}:{}:{}".format(*place)
    assert {one["topic"] for one in receipts if one["by"] == "redrive"} == {f"{topic}.dead-letters"}
    assert {one["order_id"] for one in receipts if one["event_id"] == "broken"} == {"o-2"}
    refused = command("replay", "--topic", on, "--from", "beginning", "--to", "end", env=env)
    assert (refused.returncode, "holds receipts" in refused.stderr) == (2, True)


def test_a_pattern_does_not_read_receipts(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A pattern that matches the receipts topic omits it; that topic by its name is refused."""
    topic = new_topic(kafka)
    write_events(kafka, topic, [commerce_event("one")])
    create_topic(kafka, 1, f"{topic}.receipts")
    env = environment(tmp_path, kafka, api, topic)
    env["KAFKA_TOPICS"] = f"^{topic}.*"
    assert serve(tmp_path, env, 1)["read"] == 1
    write_events(kafka, topic, [commerce_event("two")])
    assert serve(tmp_path, env, 1)["read"] == 1
    env["KAFKA_TOPICS"] = f"{topic},{topic}.receipts"
    refused = command("run", env=env)
    assert (refused.returncode, "receipts would be read as events" in refused.stderr) == (2, True)


def test_a_topic_that_cannot_be_written_is_an_outage(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Sending stops once what is at risk has no receipt; nothing is committed, no key is stored, /readyz names the
    topic. Once it takes receipts, all is delivered that was not, once."""
    topic = new_topic(kafka)
    on = create_topic(kafka, 1, f"{topic}.receipts", max_message_bytes="100")
    write_events(kafka, topic, [commerce_event(f"e-{number}") for number in range(600)])
    at_risk = {"PINSTREAM_BATCH_EVENTS": "20", "PINSTREAM_CONCURRENCY": "4"}
    env = environment(tmp_path, kafka, api, topic, **at_risk)
    with Process(tmp_path, "run", env=env) as process:
        process.until(
            lambda: process.get("/readyz")[0] == 503 and on in process.get("/readyz")[1], "the outage"
        )
        process.until(lambda: "receipts_not_stored" in {line["event"] for line in process.log}, "the line")
        assert 0 < api.counts().accepted_events <= 80
        assert sum(committed_offsets(kafka, env["KAFKA_GROUP_ID"], topic)) == 0
        assert process.ledger()["delivered"] == 0
        resource = ConfigResource(ResourceType.TOPIC, on)
        resource.add_incremental_config(
            ConfigEntry("max.message.bytes", "100000", incremental_operation=AlterConfigOpType.SET)
        )
        admin = AdminClient(kafka.config)
        admin.incremental_alter_configs([resource])[resource].result(WITHIN)
        assert process.until_settled(600)["delivered"] == 600
        assert process.get("/readyz")[0] == 200
        assert process.stop()[0] == 0
    assert set(api.accepted().values()) == {1}
    assert {one["event_id"] for one in receipts_on(kafka, on)} == {f"e-{number}" for number in range(600)}


def test_nothing_of_a_person_is_in_receipts(kafka: Kafka, servers: Loop, tmp_path: Path) -> None:
    """Neither in values nor in keys, hashed or not, whatever records hold and the API echoes."""
    server = EchoingApi()
    url = servers.call(server.start())
    topic, values = new_topic(kafka), marked_records()
    write(
        kafka, topic, ((EMAIL.encode(), value) for value in values), headers=[("shop-note", EMAIL.encode())]
    )
    on = f"{topic}.receipts"
    more = {"PINSTREAM_RECEIPTS_TOPIC": on, "PINSTREAM_BATCH_EVENTS": "8", "PINSTREAM_DEAD_LETTER_SHARE": "1"}
    env = run_environment(tmp_path, kafka, topic, new_group(), url, **more)
    serve(tmp_path, env, len(values))
    servers.call(server.stop())
    messages = read_all(kafka, on, len(values))
    text = b"\n".join((one.key() or b"") + (one.value() or b"") for one in messages).decode(
        "utf-8", "replace"
    )
    assert found_in(text, OF_A_PERSON) == []
    assert tally(receipts_on(kafka, on))["delivered"] == len(server.delivered)


def test_with_a_registry_and_workers(kafka: Kafka, api: Api, servers: Loop, tmp_path: Path) -> None:
    """Each worker registers the schema, which is one, and their receipts name its id."""
    topic = new_topic(kafka)
    write_events(kafka, topic, [commerce_event(f"e-{number}") for number in range(200)])
    with Registry(servers) as registry:
        env = environment(tmp_path, kafka, api, topic, SCHEMA_REGISTRY_URL=registry.url)
        env["PINSTREAM_SCHEMAS_DIR"] = str(Path(__file__).parents[2] / "schemas")
        with Process(tmp_path, "run", "--workers", "2", env=env) as process:
            assert process.until_settled(200)["delivered"] == 200
            assert process.stop()[0] == 0
        asked = [path for path in registry.requests if f"{topic}.receipts-value" in path]
    assert asked
    messages = read_all(kafka, f"{topic}.receipts", 200)
    assert {(one.value() or b"")[:5] for one in messages} == {b"\0\0\0\0\1"}
    assert {one["event_id"] for one in receipts_on(kafka, f"{topic}.receipts")} == set(api.accepted())


def test_check_refuses_a_compacted_topic(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """There only the last receipt of a record would stay. One that is missing or fit is no problem."""
    topic = new_topic(kafka)
    env = environment(tmp_path, kafka, api, topic)
    assert command("check", env=env).returncode == 0
    on = create_topic(kafka, 1, f"{topic}.receipts", cleanup_policy="compact")
    refused = command("check", env={**env, "COLUMNS": "2000"})
    assert refused.returncode == 1
    [row] = [line for line in refused.stdout.splitlines() if line.startswith("receipts topic")]
    assert f"{on} is compacted" in refused.stdout, row
    assert "cleanup.policy=delete" in refused.stdout
