"""`check` asks the registry for the newest schema of each topic, and for the context."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from consumer.adapters.kafka.cluster import ClusterView
from consumer.app import building
from consumer.commands.check import kafka as brokers
from consumer.commands.check import local
from consumer.commands.check import registry as questions
from consumer.commands.check.rows import CheckContext, Row, Severity, ok, warning
from consumer.settings import load
from tests.adapters.fake_registry import FakeRegistry
from tests.commands.check.asking import asked, check, nowhere
from tests.end_to_end.api import Api, Loop, Registry
from tests.end_to_end.processes import run_environment
from tests.end_to_end.records import SCHEMA, new_group, new_topic
from tests.support.kafka.harness import Kafka

ROW = "writers' schemas"


@pytest.fixture
def registry(servers: Loop) -> Iterator[Registry]:
    """A fake registry."""
    with Registry(servers) as one:
        yield one


def test_the_newest_schemas_of_the_topics(kafka: Kafka, real_registry: str, api: Api, tmp_path: Path) -> None:
    """How many can be read; one of another kind, and one that does not fit, are warnings."""
    topic = new_topic(kafka, 1)
    env = run_environment(tmp_path, kafka, topic, new_group(), api.url, SCHEMA_REGISTRY_URL=real_registry)
    found = check(env)
    assert found.code == 0
    assert found.text(ROW, "ok").startswith(
        "no subject is named <topic>-value: what the topics hold is seen when"
    )
    with SchemaRegistryClient({"url": real_registry}) as client:
        client.register_schema(f"{topic}-value", Schema(json.dumps(SCHEMA), "AVRO"))
        found = check(env)
        assert (found.verdicts(ROW), found.code) == (["ok"], 0)
        assert found.text(ROW, "ok") == f"1 of 1 newest schema can be read: {topic}-value"
        proto = f'syntax = "proto3"; message M{uuid4().hex} {{ int32 i = 1; }}'
        misfit = {**SCHEMA, "fields": [{"name": "event_id", "type": "long"}]}
        others = {
            new_topic(kafka, 1): Schema(proto, "PROTOBUF"),
            new_topic(kafka, 1): Schema(json.dumps(misfit), "AVRO"),
        }
        ids = [client.register_schema(f"{name}-value", schema) for name, schema in others.items()]
    found = check(env | {"KAFKA_TOPICS": ",".join((topic, *others))})
    assert found.verdicts(ROW) == ["ok", "warning", "warning"]
    assert found.text(ROW, "ok").startswith("1 of 3 newest schemas can be read: ")
    warnings = " | ".join(text for verdict, text in found.rows[ROW] if verdict == "warning")
    for name, number, what in zip(
        others, ids, ("it is a PROTOBUF schema; pinstream reads Avro", ""), strict=True
    ):
        assert f"{name}-value: schema id {number}: {what}" in warnings
    assert warnings.count("; its records become dead letters") == 2
    assert found.code == 0, "the subject may be a rest of former times"


GONE = {"name": "shop.Item", "subject": "item", "version": 1}
LACKING = {**SCHEMA, "fields": [one for one in SCHEMA["fields"] if one["name"] != "page_url"]}


@pytest.mark.parametrize(
    ("newest", "references", "said"),
    [
        (SCHEMA, [GONE], "orders-value: a schema that this one refers to was deleted: register that one again; its "
            "records wait"),
        (LACKING, [], "Schema orders-value, newest, of commerce.v1.CommerceEvent lacks page_url (event_source_url), so "
            "defaults are read"),
    ],
    ids=["it refers to a deleted one", "it lacks what the mapping reads"],
)  # fmt: skip
async def test_a_newest_schema_that_is_not_right(
    newest: dict[str, Any], references: list[dict[str, Any]], said: str, tmp_path: Path
) -> None:
    """It is a warning, before its first record; the other topics' are checked."""
    async with FakeRegistry() as registry:
        registry.add("orders-value", json.dumps(newest), references=references)
        registry.add("payments-value", json.dumps(SCHEMA))
        settings = load(nowhere(tmp_path, SCHEMA_REGISTRY_URL=registry.url))
        cluster = ClusterView((), {"orders": 1, "payments": 1}, (), (), {})
        found = CheckContext(settings, sections=building.sections(settings), cluster=cluster)
        readable = f"{1 if references else 2} of 2 newest schemas can be read: orders-value, payments-value"
        assert await questions.writers(found) == [ok(readable), warning(said)]


def test_a_context_that_the_registry_does_not_have(
    kafka: Kafka, registry: Registry, api: Api, tmp_path: Path
) -> None:
    """It is a failed row, since no schema would be found; one that exists is right with or without colons."""
    registry.set_contexts(".shop", ".staging")
    env = run_environment(tmp_path, kafka, new_topic(kafka, 1), new_group(), api.url)
    for context, verdict in ((".staging", "ok"), (":.shop:", "ok"), (".stagign", "failed")):
        url = {"SCHEMA_REGISTRY_URL": f"{registry.url}/contexts/{context}"}
        [row] = asked(env | url, local.schema, brokers.cluster, questions.writers)
        assert row.verdict.value == verdict
    assert row.text == (
        "SCHEMA_REGISTRY_URL: the registry has no context .stagign, only ., .shop, .staging; correct what follows "
        "/contexts/"
    )
    assert [one.verdict.value for one in asked(env | url, questions.answers)] == ["ok"]


def test_names_of_contexts_are_shown_printable_and_bounded(registry: Registry, tmp_path: Path) -> None:
    """They may be anything that the registry answers."""
    registry.set_contexts("\x1b]0;title\x07", "x" * 5_000)
    env = nowhere(tmp_path, SCHEMA_REGISTRY_URL=f"{registry.url}/contexts/.shop")
    [row] = asked(env, questions.writers)
    assert "has no context .shop, only" in row.text
    assert row.text.isprintable()
    assert len(row.text) < 300


def test_a_registry_that_is_down_is_said_once(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A registry that is down is reported in its own row; the row about its schemas is skipped."""
    url = {"SCHEMA_REGISTRY_URL": "http://127.0.0.1:9"}
    env = run_environment(tmp_path, kafka, new_topic(kafka, 1), new_group(), api.url, **url)
    order = (local.schema, brokers.cluster, questions.answers, questions.writers)
    assert [row.verdict.value for row in asked(env, *order[:3])] == ["failed"]
    assert asked(env, *order) == [Row(Severity.SKIPPED, "needs the schema registry")]
