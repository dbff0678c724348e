"""A new writer's schema that differs from what the mapping reads is reported with its first record."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine.figures.outside import DriftedSection
from consumer.engine.model import SchemaDrift
from tests.engine.building import Core, of_schema, ref
from tests.engine.decoder import FakeDecoder

LACKING = SchemaDrift(
    "shop.Order", ("customer.emails (user_data.em)",), ("user_data.ph from customer.phone",)
)


def test_drift_is_reported_until_another_schema_has_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, with the first record of the schema; figures and sentence until a later schema has what is mapped.
    Fields that could fill something are only information."""
    drifts = {
        "1": [SchemaDrift("shop.Order")],
        "2": [LACKING],
        "3": [LACKING._replace(lacks=())],
        "4": [SchemaDrift("shop.Order")],
    }
    monkeypatch.setattr(FakeDecoder, "drift", lambda _, ref: drifts[ref.value])
    core = Core()
    core.assign()
    found = []
    for offset, schema in enumerate("12234"):
        core.fetch(of_schema(f"e{offset}", schema))
        if core.has(m.FetchSchema):
            core.take(m.FetchSchema)
            core.feed(m.SchemaFound(ref(schema), "good"))
        found.append(core.statistics().schema_drift)
    assert [[one.schema for one in several] for several in found] == [[], ["id 2"], ["id 2"], ["id 3"], []]
    assert found[1] == (DriftedSection("shop.Order", "id 2", LACKING.lacks, LACKING.could_fill),)
    assert found[1][0].sentence == (
        "Schema id 2 of shop.Order lacks customer.emails (user_data.em), so defaults are read; "
        "it could fill user_data.ph from customer.phone"
    )
    reports = core.reports("schema_drift")
    assert [(one.level, one.fields["ref"]) for one in reports] == [("warning", "2"), ("info", "3")]
    assert reports[0].fields["lacks"] == "customer.emails (user_data.em)"
