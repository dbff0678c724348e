"""An engine whose ledger does not add up is visible on the page, in the metrics and in health."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from consumer.web.health import why_not_ready, why_unhealthy
from tests.engine.building import Core, event, filtered
from tests.web.building import Served, idle, statistics
from tests.web.listening import running


@pytest.fixture(name="spoiled")
async def _spoiled() -> AsyncIterator[Served]:
    """A server of an engine that has lost a record."""
    core = Core()
    core.assign()
    core.fetch(filtered(), event("a"))
    core.pipeline.ledger._entered += 1
    async with running(core.statistics) as served:
        yield served


async def test_status_says_by_how_much(spoiled: Served) -> None:
    """The document is served with the figures as counted: the sum is visibly wrong."""
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
    """/healthz fails, so that the process is restarted with a new ledger."""
    for probe in ("/healthz", "/readyz"):
        status, _, text = await spoiled.get(probe)
        assert status == 503
        assert text.startswith("the ledger does not add up (by 1 records)")


@pytest.mark.parametrize("off", [2, -2])
def test_nothing_excuses_it(off: int) -> None:
    """For a difference of either sign, and also while the member is idle."""
    assert why_unhealthy(idle(), 0.0) is None
    snapshot = statistics(mismatch=off)
    assert "does not add up" in (why_unhealthy(snapshot, 0.0) or "")
    assert "does not add up" in (why_not_ready(snapshot) or "")
