"""While the registry fails to answer, records go on with its earlier answer, and it is asked until it answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from consumer.engine import messages as m
from tests.engine.building import Core, of_schema, reading, ref

AWAY = m.SchemaUnavailable(ref("1"), "it is away")


def earlier(schema: Any = "good") -> m.SchemaFound:
    """Return the registry's earlier answer for schema 1."""
    return m.SchemaFound(ref("1"), schema, unanswered=AWAY)


def waiting_core(*event_ids: str) -> Core:
    """Return a core with records of schema 1, which was asked for."""
    return reading(*(of_schema(one, "1") for one in event_ids))


def ask_again(core: Core) -> None:
    """Wait until schema 1 is asked for again."""
    core.until(lambda: core.has(m.FetchSchema))
    assert core.take(m.FetchSchema).ref == ref("1")


def test_records_go_on_with_what_the_registry_answered_earlier() -> None:
    """Records are delivered with the earlier answer; figures and log say that the schema is from disk, and why."""
    core = waiting_core("a", "b")
    core.take(m.FetchSchema)
    core.feed(earlier())
    core.deliver()
    assert (core.statistics().totals.delivered, core.committable()) == (2, 2)
    assert (core.statistics().schemas_from_disk, core.statistics().waiting_for_schema) == (1, 0)
    [report] = core.reports("schema_from_disk")
    assert (report.level, report.fields) == ("warning", {"ref": "1", "reason": "it is away"})
    assert core.statistics().counters.failures["registry"] == 1


def test_the_registry_is_asked_until_it_answers_though_no_record_waits() -> None:
    """The registry is asked with the usual backoff until it answers, even without waiting records or the partition."""
    core = waiting_core("a")
    core.take(m.FetchSchema)
    core.feed(earlier())
    core.deliver()
    for _ in range(3):
        ask_again(core)
        core.feed(earlier())
    core.lose(0)
    ask_again(core)
    assert core.statistics().counters.failures["registry"] == 4
    assert (len(core.reports("schema_from_disk")), core.reports("schema_unavailable")) == (1, []), "told once"
    core.feed(m.SchemaFound(ref("1"), "good"))
    assert core.statistics().schemas_from_disk == 0
    assert not core.reports("schema_changed")
    core.advance(1000.0)
    assert not core.has(m.FetchSchema)


def test_when_the_file_is_gone_the_registry_is_asked_on() -> None:
    """When the file is gone too, records are read by the schema already known, and the registry is asked on."""
    core = waiting_core("a")
    core.take(m.FetchSchema)
    core.feed(earlier())
    core.deliver()
    ask_again(core)
    core.feed(AWAY)
    core.fetch(of_schema("b", "1"))
    core.deliver()
    assert core.statistics().totals.delivered == 2
    ask_again(core)


def test_what_an_earlier_schema_cannot_read_waits_for_the_registry() -> None:
    """Records that the earlier schema cannot read wait for the registry, since it may be another registry's schema."""
    core = waiting_core("a", "b")
    core.take(m.FetchSchema)
    core.feed(earlier("broken"))
    core.advance(5.0)
    core.fetch(of_schema("c", "1"))
    assert (core.statistics().waiting_for_schema, core.committable()) == (3, None)
    assert not core.has(m.StoreDeadLetters)
    core.until(lambda: core.has(m.FetchSchema))
    core.take(m.FetchSchema)
    core.feed(m.SchemaFound(ref("1"), "good"))
    core.deliver()
    assert (core.statistics().totals.delivered, core.committable()) == (3, 3)


def test_what_the_registry_confirms_is_final() -> None:
    """When the registry confirms the earlier schema, a record that it cannot read becomes a dead letter."""
    core = waiting_core("a")
    core.take(m.FetchSchema)
    core.feed(earlier("broken"))
    ask_again(core)
    core.feed(m.SchemaFound(ref("1"), "broken"))
    assert [one.rejection.code for one in core.store_letters()] == ["schema_unusable"]
    assert not core.reports("schema_changed")


def test_a_registry_with_another_schema_is_reported_and_counts() -> None:
    """A registry with another schema than the earlier one is logged as an error, and its schema counts from then on."""
    core = waiting_core("a")
    core.take(m.FetchSchema)
    core.feed(earlier("good"))
    core.deliver()
    core.until(lambda: core.has(m.FetchSchema))
    core.take(m.FetchSchema)
    core.feed(m.SchemaFound(ref("1"), "broken"))
    [report] = core.reports("schema_changed")
    assert report.level == "error"
    assert (report.fields["ref"], report.fields["now"]) == ("1", "another")
    assert isinstance(report.fields["seconds"], int)
    core.fetch(of_schema("b", "1"))
    assert [one.rejection.code for one in core.store_letters()] == ["schema_unusable"]


def test_a_registry_that_denies_the_schema_counts() -> None:
    """When the registry denies the schema, later records wait, and become dead letters once it denied it for long."""
    core = waiting_core("a")
    core.take(m.FetchSchema)
    core.feed(earlier())
    core.deliver()
    ask_again(core)
    core.feed(m.SchemaMissing(ref("1")))
    assert [(one.level, one.fields["now"]) for one in core.reports("schema_changed")] == [("warning", "none")]
    assert core.statistics().schemas_from_disk == 0
    core.fetch(of_schema("b", "1"))
    assert core.statistics().waiting_for_schema == 1
    core.deny_schema()
    assert [one.rejection.code for one in core.store_letters()] == ["schema_missing"]


def test_an_earlier_answer_that_nobody_needs_any_more_is_not_learned() -> None:
    """An earlier answer for records of a lost partition is ignored, and the registry is asked no more."""
    core = waiting_core("a")
    asked = core.take(m.FetchSchema)
    core.lose(0)
    core.feed(m.SchemaUnavailable(asked.ref, "it is away"))
    core.feed(earlier())
    assert core.statistics().schemas_from_disk == 0
    core.advance(1000.0)
    assert not core.has(m.FetchSchema)


SCHEMA = {"type": "record", "name": "E", "fields": [{"name": "a", "type": "int"}]}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (m.SchemaFound(ref("1"), SCHEMA), True),
        (m.SchemaFound(ref("1"), json.dumps(SCHEMA, indent=1)), True),
        (m.SchemaFound(ref("1"), dict(reversed(SCHEMA.items()))), True),
        (m.SchemaFound(ref("1"), {**SCHEMA, "name": "F"}), False),
        (m.SchemaFound(ref("1"), {**SCHEMA, "fields": [{"name": "a", "type": "long"}]}), False),
        (m.SchemaFound(ref("2"), SCHEMA), False),
        (m.SchemaFound(ref("1"), "", "PROTOBUF"), False),
        (m.SchemaFound(ref("1"), "no JSON"), False),
        (m.SchemaFound(ref("1"), "[" * 100_000), False),
    ],
)
def test_two_answers_are_the_same_if_they_are_the_same_json(other: m.SchemaFound, same: bool) -> None:
    """Two answers are the same if their JSON is, apart from spaces and the order of keys; other texts differ."""
    assert m.SchemaFound(ref("1"), json.dumps(SCHEMA)).is_same(other) is same
    assert other.is_same(other)
