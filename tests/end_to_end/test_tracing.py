"""Traces of a process: real spans at a collector, and what becomes of events where there is no collector, or no extra.

The collector is an HTTP server in this process that takes OTLP as protobuf, or does not answer at all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from consumer.demo.faults import Chance
from consumer.demo.generator import GeneratedEvent
from tests.end_to_end.api import Api
from tests.end_to_end.processes import ACCOUNT, Process, run_environment
from tests.end_to_end.records import generated, new_group, new_topic, value_of
from tests.support.kafka.harness import Kafka, produce
from tests.support.limits import LATE

EVENTS = 300
TRACES = 40
BLOCK = 'import sys\nsys.modules["opentelemetry"] = None\n'


class Collector:
    """Takes spans. `answer`: whether it ever answers."""

    def __init__(self, answer: bool = True) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        self.paths: set[str] = set()
        self.arrived = threading.Event()
        closing = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.add(self.path)
                collector.requests.append(ExportTraceServiceRequest.FromString(body))
                collector.arrived.set()
                if not answer:
                    closing.wait(60)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._closing = closing
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """No more."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def spans(self, name: str) -> list[Any]:
        """Those of that name that have arrived."""
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.name == name
        ]

    def resource(self) -> dict[str, Any]:
        """Whose spans they are."""
        return told(self.requests[0].resource_spans[0].resource)


@contextmanager
def collecting(answer: bool = True) -> Iterator[Collector]:
    """A collector for the time of a test."""
    collector = Collector(answer)
    yield collector
    collector.close()


def committed(process: Process) -> int:
    """How many records its status says are committed."""
    return sum(one["committed"] or 0 for one in process.status()["partitions"])


def told(of: Any) -> dict[str, Any]:
    """The attributes of a span or a resource."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


def write_traced(kafka: Kafka, topic: str, events: list[GeneratedEvent]) -> None:
    """The first ones are each written in a trace of its own, the next has a header that is none."""
    for number, one in enumerate(events[:TRACES], start=1):
        header = f"00-{number:032x}-{number:016x}-01".encode()
        produce(kafka, topic, [value_of(one)], headers=[("traceparent", header)])
    produce(kafka, topic, [value_of(events[TRACES])], headers=[("traceparent", b"jane@example.org")])
    produce(kafka, topic, [value_of(one) for one in events[TRACES + 1 :]])


def started(kafka: Kafka, api: Api, folder: Path, **settings: str) -> dict[str, str]:
    """A topic with records, and what a process needs that reads it."""
    topic = new_topic(kafka)
    write_traced(kafka, topic, generated(EVENTS)[1])
    return run_environment(folder, kafka, topic, new_group(), api.url, **settings)


def test_a_collector_gets_the_spans_of_a_run(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Fetch, convert, send and commit, with links to where records come from; the last ones before it ends."""
    api.set_faults(server_error=Chance(first=1))
    with collecting() as collector:
        env = started(
            kafka, api, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="shop-events",
            PINSTREAM_BATCH_EVENTS="100",
        )  # fmt: skip
        with Process(tmp_path, "run", env=env) as process:
            ledger = process.until_settled(EVENTS)
            process.until(lambda: committed(process) == EVENTS, "a commit of all")
            code, seconds = process.stop()
        assert (code, process.stdout) == (0, "")
        assert seconds < LATE
    assert process.until_logged("tracing")["asked_by"] == "OTEL_EXPORTER_OTLP_ENDPOINT"
    assert collector.paths == {"/v1/traces"}
    assert collector.resource()["service.name"] == "shop-events"
    fetched = sum(told(one)["messaging.batch.message_count"] for one in collector.spans("fetch"))
    assert fetched == EVENTS
    parents = {one.span_id: one.trace_id for one in collector.spans("fetch")}
    assert all(parents[one.parent_span_id] == one.trace_id for one in collector.spans("convert"))
    assert len(collector.spans("convert")) == len(parents)
    assert collector.spans("commit")
    check_sends(collector.spans("send"), ledger["delivered"], api.calls)
    assert b"jane" not in b"".join(one.SerializeToString() for one in collector.requests)


def check_sends(sends: list[Any], delivered: int, calls: int) -> None:
    """A span for each call; what was tried again says so."""
    assert len(sends) == calls
    accepted = [told(one) for one in sends if told(one)["http.response.status_code"] == 200]
    assert sum(one["pinstream.events"] for one in accepted) == delivered
    assert {one["pinstream.account"] for one in accepted} == {ACCOUNT}
    assert all(one["pinterest.request_id"].isdigit() for one in accepted)
    assert max(one["pinstream.attempt"] for one in accepted) == 2
    [failed] = [told(one) for one in sends if told(one)["http.response.status_code"] != 200]
    assert failed["error.type"] == str(failed["http.response.status_code"])
    assert failed["pinstream.attempt"] == 1
    links = [[int.from_bytes(link.trace_id) for link in one.links] for one in sends]
    assert max(map(len, links)) <= 32
    assert len({trace for one in links for trace in one}) >= 32
    assert {trace for one in links for trace in one} <= set(range(1, TRACES + 1))


def test_a_collector_that_is_down_costs_spans_only(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """All is delivered, one line says what is wrong, and the end is as quick as ever."""
    with collecting() as collector:
        url = collector.url
    env = started(
        kafka, api, tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="50",
        OTEL_EXPORTER_OTLP_TIMEOUT="1", PINSTREAM_SHUTDOWN_GRACE="40s",
    )  # fmt: skip
    with Process(tmp_path, "run", env=env) as process:
        process.until_settled(EVENTS)
        process.until_logged("traces_not_exported")
        code, seconds = process.stop()
    assert code == 0
    assert seconds < LATE
    assert [one["event"] for one in process.log].count("traces_not_exported") == 1
    assert "Traceback" not in process.stderr
    assert url.removeprefix("http://") not in process.stderr


@pytest.mark.parametrize("grace", ["3s", "60s"])
def test_a_collector_that_hangs_does_not_hold_up_the_end(
    kafka: Kafka, api: Api, tmp_path: Path, grace: str
) -> None:
    """It gets a few seconds, and no more than the grace has left."""
    with collecting(answer=False) as collector:
        env = started(
            kafka, api, tmp_path, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/spans",
            OTEL_BSP_SCHEDULE_DELAY="50", OTEL_EXPORTER_OTLP_TIMEOUT="60", PINSTREAM_SHUTDOWN_GRACE=grace,
        )  # fmt: skip
        with Process(tmp_path, "run", env=env) as process:
            process.until_settled(EVENTS)
            assert collector.arrived.wait(30)
            code, seconds = process.stop()
        assert code == 0
        assert seconds < 3 + LATE  # the exporter alone would take 60, as long as the grace may be
        assert process.log[-1]["event"] == "stopped"
        assert collector.paths == {"/spans"}


@pytest.mark.parametrize("asked", [True, False])
def test_without_the_extra_it_runs(kafka: Kafka, api: Api, tmp_path: Path, asked: bool) -> None:
    """With one warning if traces are asked for, and without a word if not: then nothing of it is imported."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK)
    wish = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"} if asked else {"OTEL_SERVICE_NAME": "shop"}
    env = started(kafka, api, tmp_path, PYTHONPATH=str(tmp_path / "blocked"), **wish)
    with Process(tmp_path, "run", env=env) as process:
        process.until_settled(EVENTS)
        assert process.stop()[0] == 0
    warnings = [one for one in process.log if one["event"] == "tracing_off"]
    assert [one["level"] for one in warnings] == ["warning"] * asked
    assert all("pip install 'pinstream[otel]'" in one["text"] for one in warnings)
    assert not any(one["event"] == "tracing" for one in process.log)
