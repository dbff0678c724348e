"""The service with traces: a span for each fetch, convert, send and commit; without traces it works as before."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import create_autospec

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from structlog.testing import capture_logs

from consumer.app.telemetry import CLOSING, Tracing, environment
from consumer.app.telemetry.spans import LINKS, SpanTracing, Watched
from consumer.engine import messages as m
from consumer.engine.model import Chunk
from consumer.service import Service
from tests.engine.building import ACCOUNT, event
from tests.service.driving import AdapterFailure, serve, settled, until, values
from tests.service.fakes import FakeDeadLetters, FakeSchemas, FakeSource, Process, World, fake_clock
from tests.service.virtual_time import now, run
from tests.settings.environment import with_
from tests.support.limits import LATE

MARK = "zq7xmark"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


def traceparent(number: int) -> bytes:
    """The header of the trace of that number."""
    return f"00-{number:032x}-{number:016x}-01".encode()


class _HeadedSource(FakeSource):
    """Its records have the headers of their offset."""

    headers: dict[int, tuple[tuple[str, bytes | None], ...]]

    async def fetch(self, room: int, timeout: float) -> Sequence[Chunk]:
        chunks = await super().fetch(room, timeout)
        for chunk in chunks:
            for place, record in enumerate(chunk.records):
                chunk.records[place] = record._replace(headers=self.headers.get(record.offset, ()))
        return chunks


class Traced(Process):
    """A fake process whose service is traced, as `consumer.app.run` does it."""

    def __init__(self, world: World, headers: Sequence[bytes] = (), **policy: Any) -> None:
        super().__init__(world, trace_links=LINKS, **policy)
        self.exporter = InMemorySpanExporter()
        self.tracing = SpanTracing(
            SimpleSpanProcessor(self.exporter),
            instance="member-1",
            group="shop-group",
            api_url="https://user:pw@api.example.org/v5",
        )
        self.headers = {offset: (("traceparent", text),) for offset, text in enumerate(headers)}
        self.service = Service(
            self.pipeline,
            connect=lambda listener: self.tracing.source(self._headed(listener)),
            api=self.tracing.api(self.api),
            key_store=self.key_store,
            schemas=FakeSchemas(self),
            dead_letters=FakeDeadLetters(self),
            clock=fake_clock,
            report=self.reports.append,
            grace=25.0,
            around_fetched=self.tracing.convert,
        )

    def _headed(self, listener: Service) -> FakeSource:
        source = _HeadedSource(self, listener)
        source.headers = dict(self.headers)
        self.source = source
        return source

    def spans(self, name: str) -> list[ReadableSpan]:
        """The spans with that name, in the order in which they ended."""
        return [one for one in self.exporter.get_finished_spans() if one.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only span with that name."""
        [span] = self.spans(name)
        return span


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """A span's attributes, to compare."""
    return dict(span.attributes or {})


def linked(span: ReadableSpan) -> list[int]:
    """The traces that a span links to."""
    return [link.context.trace_id for link in span.links]


# -- what is traced


def test_each_stage_has_its_span() -> None:
    """Fetch and convert are one trace; each send and each commit is one; an empty fetch is none."""
    process = Traced(World(p0=values(5), p1=values(3, "x")))
    run(serve(process, lambda: settled(process)() and process.calls.count("fetch") > 5))
    fetch, convert, send = process.one("fetch"), process.one("convert"), process.one("send")
    assert attributes(fetch) == {
        "messaging.system": "kafka",
        "messaging.consumer.group.name": "shop-group",
        "messaging.operation.type": "receive",
        "messaging.batch.message_count": 8,
        "pinstream.partitions": 2,
    }
    assert attributes(convert) == {"messaging.batch.message_count": 8, "pinstream.partitions": 2}
    assert convert.parent is not None
    assert convert.parent.span_id == fetch.context.span_id
    assert {fetch.kind, send.kind} == {SpanKind.CLIENT}
    assert send.parent is None
    sent = attributes(send)
    assert sent.pop("http.request.body.size") > 100
    assert sent == {
        "http.request.method": "POST",
        "server.address": "api.example.org",
        "http.response.status_code": 200,
        "pinstream.account": ACCOUNT,
        "pinstream.events": 8,
        "pinstream.attempt": 1,
    }
    assert {one.status.status_code for one in process.exporter.get_finished_spans()} == {StatusCode.UNSET}


def test_commits_have_a_span() -> None:
    """A commit that the broker refuses has one, too, with the reason."""
    process = Traced(World(p0=values(4), p1=values(4, "x")), commit_interval=0.1)

    async def scenario() -> None:
        running = asyncio.create_task(process.service.run())
        await until(lambda: process.api.in_flight > 0)
        del process.source.epochs[0]  # the group took it, and we have not heard
        await until(lambda: len(process.spans("commit")) >= 1)
        process.service.request_stop()
        await running

    run(scenario())
    commit = process.spans("commit")[0]
    assert attributes(commit) == {
        "messaging.system": "kafka",
        "messaging.consumer.group.name": "shop-group",
        "messaging.operation.type": "settle",
        "pinstream.partitions": 2,
        "error.type": "_ASSIGNMENT_LOST",
    }
    assert commit.status.status_code is StatusCode.ERROR


def test_a_call_that_fails_says_how_and_which_attempt_it_was() -> None:
    """No answer, an error status, and the platform's request id; the next attempt has a span of its own."""
    process = Traced(World(p0=values(2)))

    async def fail(command: m.Send) -> m.Answered | m.Unanswered:
        if command.attempt == 1:
            return m.Unanswered(command.number, "timeout")
        if command.attempt == 2:
            return m.Answered(command.number, 503, {"x-pinterest-rid": "12345"}, MARK.encode())
        return await process.api.accept(command)

    process.api.answering = fail
    run(serve(process, settled(process)))
    reported = [attributes(one) for one in process.spans("send")]
    assert [one["pinstream.attempt"] for one in reported] == [1, 2, 3]
    assert [one.get("error.type") for one in reported] == ["timeout", "503", None]
    assert [one.get("http.response.status_code") for one in reported] == [None, 503, 200]
    assert [one.get("pinterest.request_id") for one in reported] == [None, "12345", None]


def test_what_an_adapter_raises_ends_its_span_and_goes_on_its_way() -> None:
    """A fatal error stays fatal with traces; the span has the error's name and not its text."""
    process = Traced(World(p0=values(2)))
    process.broken["send"] = AdapterFailure(MARK)
    with pytest.raises(AdapterFailure):
        run(serve(process, settled(process)))
    assert attributes(process.one("send"))["error.type"] == "AdapterFailure"
    assert MARK not in "".join(one.to_json() for one in process.exporter.get_finished_spans())


def test_spans_link_to_where_their_records_come_from() -> None:
    """Convert and send link to them, each batch to its own records; invalid headers are ignored, and the number of
    links is bounded."""
    headers = [b"not a traceparent", *(traceparent(number) for number in range(1, 60))]
    process = Traced(World(p0=values(70)), headers)
    run(serve(process, settled(process)))
    assert linked(process.one("convert")) == linked(process.one("send")) == list(range(1, LINKS + 1))
    assert linked(process.one("fetch")) == []
    link = process.one("send").links[0].context
    assert (link.span_id, link.is_remote, link.trace_flags.sampled) == (1, True, True)
    process = Traced(World(p0=values(4)), headers[1:5], batch_events=2)
    run(serve(process, settled(process)))
    assert sorted(linked(one) for one in process.spans("send")) == [[1, 2], [3, 4]]
    assert linked(process.one("convert")) == [1, 2, 3, 4]


def test_no_personal_data_is_in_a_span() -> None:
    """No value of the payload, of a header or of an answer."""
    world = World(p0=[event("a", em=MARK), f"\xff{MARK}".encode(), event(f"bad{MARK}")])
    process = Traced(world, [MARK.encode(), MARK.encode()])

    async def echo(command: m.Send) -> m.Answered:
        answered = await process.api.accept(command)
        return m.Answered(command.number, 200, {"x-pinterest-rid": f"{MARK}@example.org"}, answered.body)

    process.api.answering = echo
    run(serve(process, settled(process)))
    spans = process.exporter.get_finished_spans()
    assert {one.name for one in spans} >= {"fetch", "convert", "send"}
    assert MARK not in "".join(one.to_json() for one in spans)
    assert "user:pw" not in "".join(one.to_json() for one in spans)


def test_tracing_changes_nothing() -> None:
    """The same records, the same calls in the same order, at the same virtual time."""

    def lived(kind: type[Process]) -> tuple[list[str], list[str], float]:
        process = kind(World(p0=[*values(40), b"\xff", event("bad")], p1=values(7, "x")), batch_events=5)

        async def lifetime() -> float:
            await serve(process, settled(process))
            return now()

        took = run(lifetime())
        return process.calls, process.world.processed, took

    assert lived(Process) == lived(Traced)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "-1"),
    ],
)
def test_a_value_that_cannot_be_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """The service continues with one warning."""
    monkeypatch.setenv(name, value)
    with capture_logs() as lines:
        found, _ = environment.start(ENDPOINT, with_(), "TRACES")
    assert type(found) is Tracing
    assert [one["event"] for one in lines] == ["telemetry_off"]


# -- the way out


def test_an_outage_of_the_collector_is_two_lines() -> None:
    """One when it begins, one when it is over, with the number of spans that were lost."""
    failure, success = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
    deaf = create_autospec(SpanExporter, instance=True)
    deaf.export.side_effect = [failure, ValueError(MARK), success, success]
    exporter = Watched(deaf)
    with capture_logs() as lines:
        for _ in range(4):
            exporter.export([ReadableSpan("one"), ReadableSpan("two")])
    assert [one["event"] for one in lines] == ["traces_not_exported", "traces_exported_again"]
    assert lines[1]["spans_lost"] == 4
    assert MARK not in str(lines)


@pytest.mark.parametrize(
    ("hangs", "left", "maximum"),
    [(True, 0.0, 0.5), (True, 0.3, 1.0), (True, 100.0, CLOSING + 1.0), (False, 100.0, LATE)],
)
async def test_closing_takes_no_longer_than_is_left(hangs: bool, left: float, maximum: float) -> None:
    """A processor that never ends is abandoned; what is queued is sent, which takes no time when that is nothing."""
    hanging, given_up = asyncio.Event(), list[bool]()

    class Processor(SimpleSpanProcessor):
        def shutdown(self) -> None:
            if hangs:
                asyncio.run(hanging.wait())

    traced = SpanTracing(
        Processor(InMemorySpanExporter()),
        instance="i",
        group="g",
        api_url="https://a",
        give_up=lambda: given_up.append(True),
    )
    traced.left = lambda: left
    begun = now()
    await traced.close()
    assert now() - begun < maximum
    assert bool(given_up) == hangs


def test_the_service_says_how_much_of_the_grace_is_left() -> None:
    """The whole grace until a stop is requested; never a negative time."""
    process = Process(World(p0=[]), grace=10.0)

    async def scenario() -> list[float]:
        running = asyncio.create_task(process.service.run())
        await asyncio.sleep(5.0)
        left = [process.service.grace_left()]
        process.service.request_stop()
        left.append(process.service.grace_left())
        await running
        await asyncio.sleep(60.0)
        return [*left, process.service.grace_left()]

    assert run(scenario()) == [10.0, 10.0, 0.0]
