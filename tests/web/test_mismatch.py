"""A core whose books do not add up is seen by whoever looks: page, metrics, health."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from consumer.web.health import why_not_ready, why_unhealthy
from tests.engine.building import Core, event, filtered
from tests.web.building import Served, idle, serving, statistics


@pytest.fixture(name="spoiled")
async def _spoiled() -> AsyncIterator[Served]:
    """A server over a core that has lost a record."""
    core = Core()
    core.assign()
    core.fetch(filtered(), event("a"))
    core.pipeline.ledger._entered += 1
    async with serving(core.statistics) as served:
        yield served


async def test_status_says_by_how_much(spoiled: Served) -> None:
    """It is served, and its figures are as they were counted: the sum is visibly wrong."""
    status, _, text = await spoiled.get("/status")
    document = json.loads(text)
    parts = sum(count for name, count in document["ledger"].items() if name != "read")
    assert (status, document["ledger_mismatch"], document["ledger"]["read"] - parts) == (200, 1, 1)


async def test_metrics_say_by_how_much(spoiled: Served) -> None:
    """They are served, with the series that the alert `PinstreamLedgerMismatch` asks for."""
    status, _, text = await spoiled.get("/metrics")
    found = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert (status, found["pinstream_ledger_mismatch_records"]) == (200, 1)


async def test_probes_say_no(spoiled: Served) -> None:
    """So that it is started again, which gives it new books."""
    for probe in ("/healthz", "/readyz"):
        status, _, text = await spoiled.get(probe)
        assert status == 503
        assert text.startswith("the ledger does not add up (by 1 records)")


@pytest.mark.parametrize("off", [2, -2])
def test_nothing_excuses_it(off: int) -> None:
    """Whichever way it is off, and also while all looks idle."""
    assert why_unhealthy(idle(), 0.0) is None
    snapshot = statistics(mismatch=off)
    assert "does not add up" in (why_unhealthy(snapshot, 0.0) or "")
    assert "does not add up" in (why_not_ready(snapshot) or "")
