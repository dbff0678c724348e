"""Traces and metrics of a process at a collector; and delivery without a collector, or without the extra."""

from __future__ import annotations

import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from consumer.demo.faults import Chance
from tests.end_to_end.processes import ACCOUNT, Process
from tests.end_to_end.records import generated, value_of
from tests.end_to_end.shop import NewShop, Shop
from tests.support.kafka.harness import produce
from tests.support.limits import LATE
from tests.support.otlp import Metrics, attributes, collecting, parsed

EVENTS = 300
TRACES = 40


def committed(process: Process) -> int:
    """How many records its status says are committed."""
    return sum(one["committed"] or 0 for one in process.status()["partitions"])


@pytest.fixture
def new_shop(new_shop: NewShop) -> NewShop:
    """Shops with records: the first are each written in a trace of its own; the next has a broken trace header."""

    def make(**settings: str) -> Shop:
        shop = new_shop(**settings)
        values = [value_of(one) for one in generated(EVENTS)[1]]
        for number, value in enumerate(values[:TRACES], start=1):
            header = f"00-{number:032x}-{number:016x}-01".encode()
            produce(shop.kafka, shop.topic, [value], headers=[("traceparent", header)])
        produce(shop.kafka, shop.topic, [values[TRACES]], headers=[("traceparent", b"jane@example.org")])
        produce(shop.kafka, shop.topic, values[TRACES + 1 :])
        return shop

    return make


def test_a_collector_gets_the_spans_of_a_run(new_shop: NewShop) -> None:
    """Fetch, convert, send and commit have spans, with links to the records' traces; the last are exported
    before the process ends."""
    with collecting() as collector:
        shop = new_shop(
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_SERVICE_NAME="shop-events",
            OTEL_METRICS_EXPORTER="none",
            PINSTREAM_BATCH_EVENTS="100",
        )
        shop.api.set_faults(server_error=Chance(first=1))
        with shop.run() as process:
            ledger = process.until_settled(EVENTS)
            process.until(lambda: committed(process) == EVENTS, "a commit of all")
            code, seconds = process.stop()
        assert (code, process.stdout) == (0, "")
        assert seconds < LATE
    assert process.until_logged("telemetry")["asked_by"] == "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert collector.paths == {"/v1/traces"}
    [resource] = collector.requests[0].message.resource_spans
    assert attributes(resource.resource)["service.name"] == "shop-events"
    fetched = sum(attributes(one)["messaging.batch.message_count"] for one in collector.spans("fetch"))
    assert fetched == EVENTS
    parents = {one.span_id: one.trace_id for one in collector.spans("fetch")}
    assert all(parents[one.parent_span_id] == one.trace_id for one in collector.spans("convert"))
    assert len(collector.spans("convert")) == len(parents)
    assert collector.spans("commit")
    check_sends(collector.spans("send"), ledger["delivered"], shop.api.calls)
    assert b"jane" not in b"".join(one.message.SerializeToString() for one in collector.requests)


def check_sends(sends: list[Any], delivered: int, calls: int) -> None:
    """Each call has a span; a repeated call says so."""
    assert len(sends) == calls
    accepted = [attributes(one) for one in sends if attributes(one)["http.response.status_code"] == 200]
    assert sum(one["pinstream.events"] for one in accepted) == delivered
    assert {one["pinstream.account"] for one in accepted} == {ACCOUNT}
    assert all(one["pinterest.request_id"].isdigit() for one in accepted)
    assert max(one["pinstream.attempt"] for one in accepted) == 2
    [failed] = [attributes(one) for one in sends if attributes(one)["http.response.status_code"] != 200]
    assert failed["error.type"] == str(failed["http.response.status_code"])
    assert failed["pinstream.attempt"] == 1
    links = [[int.from_bytes(link.trace_id) for link in one.links] for one in sends]
    assert max(map(len, links)) <= 32
    assert len({trace for one in links for trace in one}) >= 32
    assert {trace for one in links for trace in one} <= set(range(1, TRACES + 1))


OFTEN = {"OTEL_METRIC_EXPORT_INTERVAL": "100", "OTEL_TRACES_EXPORTER": "none"}


def still(series: dict[Any, float]) -> dict[Any, float]:
    """The series without the values that change with time alone: ages, waits, round trips."""
    return {one: 0.0 if one[0].endswith("_seconds") else value for one, value in series.items()}


def test_a_collector_gets_what_metrics_shows(new_shop: NewShop) -> None:
    """Every series, with the same name, labels and value; the last export has the last counts."""
    with collecting() as collector:
        with new_shop(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **OFTEN).run() as process:
            ledger = process.until_settled(EVENTS)
            process.until(lambda: committed(process) == EVENTS, "a commit of all")

            def same() -> Metrics | None:
                """An export after /metrics was read, once both have the same series."""
                shown = parsed(process.get("/metrics")[1], text_string_to_metric_families)[1]
                now = time.time_ns()
                process.until(lambda: collector.metrics()[-1].at > now, "an export")
                found = collector.metrics()[-1]
                return found if still(found.series) == still(shown) else None

            # A few figures are still being heard of when all is committed, such as the ends of the logs.
            last: Metrics = process.until(same, "the same series at both")
            assert {"pinstream_partition_committed_offset"} < {name for name, _ in last.series}
            assert last.series["pinstream_records_read_total", ()] == EVENTS
        final = collector.metrics()[-1]
    assert final.at > last.at
    for part in ("delivered", "duplicate", "filtered", "dead_lettered"):
        name = ("pinstream_records_settled_total", (("disposition", part),))
        assert final.series[name] == ledger[part]
    assert ("pinstream_call_seconds_count", (("outcome", "verdict"),)) in final.series
    assert collector.paths == {"/v1/metrics"}
