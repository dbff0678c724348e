"""An engine whose ledger does not add up is visible on the page, in the metrics and in health."""

from __future__ import annotations

import json

import pytest

from consumer.web.health import why_not_ready, why_unhealthy
from tests.engine.building import Core, event, filtered
from tests.web.building import idle, statistics
from tests.web.listening import running


async def test_an_engine_that_has_lost_a_record_says_so_everywhere() -> None:
    """/status and /metrics say by how much, for the alert `PinstreamLedgerMismatch`; the probes fail, so that the
    process is restarted with a new ledger."""
    core = Core()
    core.assign()
    core.fetch(filtered(), event("a"))
    core.pipeline.ledger._entered += 1
    async with running(core.statistics) as served:
        status, _, text = await served.get("/status")
        document = json.loads(text)
        parts = sum(count for name, count in document["ledger"].items() if name != "read")
        assert (status, document["ledger_mismatch"], document["ledger"]["read"] - parts) == (200, 1, 1)
        status, _, text = await served.get("/metrics")
        assert status == 200
        assert "\npinstream_ledger_mismatch_records 1.0\n" in text
        for probe in ("/healthz", "/readyz"):
            status, _, text = await served.get(probe)
            assert status == 503
            assert text.startswith("the ledger does not add up (by 1 records)")


@pytest.mark.parametrize("off", [2, -2])
def test_nothing_excuses_it(off: int) -> None:
    """For a difference of either sign, and also while the member is idle."""
    assert why_unhealthy(idle(), 0.0) is None
    snapshot = statistics(mismatch=off)
    assert "does not add up" in (why_unhealthy(snapshot, 0.0) or "")
    assert "does not add up" in (why_not_ready(snapshot) or "")
