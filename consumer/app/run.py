"""``pinstream run``: the service, from settings to exit code."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from consumer import GARBAGE, __version__
from consumer.adapters.kafka.configuration import longest_commit
from consumer.adapters.kafka.hooks import Hooks
from consumer.adapters.kafka.source import KafkaSource
from consumer.adapters.thread import run_blocking, run_on_loop
from consumer.app import building
from consumer.app.ending import Ending, Parts, doing
from consumer.app.group import GroupReader
from consumer.app.quality import QualityWatch, account_reads
from consumer.app.receipts import receipt_writer
from consumer.app.start import Start
from consumer.app.telemetry import MetricsExport, Tracing, environment
from consumer.engine.figures.statistics import Statistics
from consumer.engine.pipeline import Pipeline
from consumer.service import Service, system_clock
from consumer.settings import REVOKE_MARGIN, Settings, load
from consumer.web.health import FETCH_HANGS_AFTER, why_unhealthy
from consumer.web.metrics import FiguresCollector
from consumer.web.server import Urls, WebServer
from consumer.web.status import Process, document_of

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
# Free bytes that the process keeps at the top of the heap.
_KEPT_FREE = 16 * 1024 * 1024
# Size in bytes from which a block is mapped by itself and returned when it is freed.
_MAPPED_ALONE = 8 * 1024 * 1024


def run_service(environ: Mapping[str, str], *, fail_fast: bool = False) -> None:
    """Serve until SIGTERM or SIGINT. `fail_fast`: do not wait for absent brokers. Raises `PinstreamError`."""
    settings = load(environ)
    building.set_up_logs(settings)
    traces, metrics = environment.start(environ, settings, "TRACES", "METRICS")
    run_on_loop(_run(settings, traces, metrics, fail_fast=fail_fast))


async def _run(settings: Settings, traces: Tracing, metrics: MetricsExport, *, fail_fast: bool) -> None:
    async with member(settings, traces, fail_fast=fail_fast) as one:
        # Before the first wait: a stop must end the start, too.
        one.end_by(Ending(one.stop, grace=settings.pinstream.shutdown_grace))
        # First, so that a user who waits for absent brokers sees which ones, and probes get an answer.
        log_starting(settings, await one.serve_page())
        figures = FiguresCollector(Statistics, lambda: [one.statistics()])
        async with metrics.exporting([figures], one.grace_left):
            await one.serve()


def log_starting(settings: Settings, urls: Urls | None) -> None:
    """Log where it reads, where it sends and where its page is."""
    structlog.get_logger().info(
        "starting",
        reads=", ".join(settings.kafka.topics),
        brokers=settings.kafka.bootstrap_servers,
        group=settings.kafka.group_id,
        sends_to=settings.pinterest.api_url,
        ad_accounts=", ".join(settings.pinterest.ad_account_ids),
        test_mode=settings.pinterest.test_mode,
        fast_path=building.fast_path(settings),
        transform=settings.pinstream.transform or "none",
        page=urls.page if urls else "off",
        health=urls.health if urls else "off",
        version=__version__,
    )


def tune_memory() -> None:
    """Collect garbage less often, return what the start took, and keep what batches free (docs/benchmarks.md)."""
    # What exists now lives as long as the process: the collector need not look at it again.
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    # glibc returns the top of the heap as soon as 128 KiB of it are free, and maps larger blocks by themselves. Each
    # batch of a megabyte would be requested and cleared page by page again: 0.4 µs an event. Other C libraries do not
    # have these functions and do not need them.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.malloc_trim(0)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED_ALONE)


@dataclass(eq=False)
class Member:
    """One group member: its configuration is read, and its parts are opened by `open` or `serve`."""

    start: Start
    _pipeline: Pipeline
    _open: Callable[[], Awaitable[Service]]
    # Closes the page before all else.
    parts: Parts = field(default_factory=Parts)
    quality: QualityWatch | None = field(default=None, init=False)
    """What asks Pinterest what it sees, once it is open; None: there is no token for that."""
    _service: Service | None = field(default=None, init=False)
    _started: float = field(default_factory=time.time, init=False)
    _asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    async def open(self) -> Service:
        """Open key store and service, once. Raises `PinstreamError`."""
        if self._service is None:
            self.start.waits_for = "the key store is being opened"
            self._service = await self._open()
            self._service.closes = self.parts.closes
            # `_begin` goes on without a turn of the loop: no report says that the start is over before it is.
            self.start.waits_for = None
        return self._service

    def stop(self) -> None:
        """Ask `serve` to end in order."""
        # The service is not running during the start, and would not see the stop.
        self._asked.set()
        if self._service is not None:
            self._service.request_stop()

    def end_by(self, ending: Ending) -> None:
        """Let the end have no more than its grace, also if no signal asks for it."""
        self.parts.closes = ending.begin

    async def serve(self) -> None:
        """Be a member of the group until asked to stop.

        Raises `PinstreamError` if a part cannot be opened, and for what keeps it from joining that waiting cannot help.
        """
        beginning = asyncio.create_task(self._begin())
        stopping = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait((beginning, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Nothing is joined yet, so there is nothing to leave.
            beginning.cancel()
            stopping.cancel()
            await asyncio.gather(beginning, stopping, return_exceptions=True)
        if self._asked.is_set():
            return
        service = beginning.result()  # raises what is wrong
        tune_memory()  # as late as this: by now all is loaded that stays
        with doing("delivering, or leaving the group"):
            await service.run()
        structlog.get_logger().info("stopped", **document_of(service.statistics().totals))

    async def _begin(self) -> Service:
        """Do all that comes before joining."""
        await self.start.find_token()
        service = await self.open()
        await self.start.find_topics()
        return service

    def statistics(self) -> Statistics:
        """Return the present figures, also during the start."""
        service = self._service
        seen = self._pipeline.statistics(system_clock()) if service is None else service.statistics()
        if self.quality is not None:
            seen = replace(seen, event_quality=self.quality.quality())
        return self.start.shown(seen)

    def grace_left(self) -> float:
        """Return the seconds that are left for stopping; before a stop is requested, all of the grace."""
        if self._service is None:
            return self.start.settings.pinstream.shutdown_grace
        return self._service.grace_left()

    async def serve_page(self, *, or_any_port: bool = False) -> Urls | None:
        """Start page, /status, health and metrics. Return their URLs; None if they are turned off.

        `or_any_port`: see `WebServer`. Raises `SettingsError` if it cannot listen.
        """
        web = web_server(
            self.start.settings,
            self.statistics,
            self.info,
            unhealthy=self.unhealthy,
            or_any_port=or_any_port,
        )
        if web is None:
            return None
        self.parts.add("the page", web.stop)
        return await web.start()

    def info(self) -> dict[str, Any]:
        """Return the part of /status that is about this process."""
        return {"process": process(self.start.settings, self._started)}

    def unhealthy(self, statistics: Statistics) -> str | None:
        """Return why /healthz fails, given these figures of the service; None: it succeeds."""
        service = self._service
        return why_unhealthy(
            statistics,
            time.monotonic(),
            None if service is None else service.fetched_at,
            hangs_after=hangs_after(self.start.settings),
            broken=None if service is None else service.key_store_broken,
        )


def web_server(
    settings: Settings,
    snapshot: Callable[[], Statistics],
    info: Callable[[], dict[str, Any]],
    **others: Any,
) -> WebServer | None:
    """Build the server of page, /status, health and metrics, not started yet; None if the settings turn them off.

    `others`: further arguments of `WebServer`.
    """
    own = settings.pinstream
    if own.http_address is None:
        return None
    return WebServer(
        snapshot,
        info,
        host=own.http_address.host,
        port=own.http_address.port,
        page_at=own.page_address,
        # None: the page needs no token.
        token=building.secret(own.http_token),
        group=GroupReader(settings, snapshot).document,
        **others,
    )


def hangs_after(settings: Settings) -> float:
    """Return the seconds after which a fetch counts as hanging."""
    # A fetch may contain a rebalance, which waits for a drain and for a commit. A broker that does not answer within
    # the commit's own limit is no reason for a restart.
    asking = max(FETCH_HANGS_AFTER, 2 * longest_commit(settings.kafka.client_properties()))
    return settings.pinstream.shutdown_grace + REVOKE_MARGIN + asking


def process(settings: Settings, started: float) -> dict[str, Any]:
    """Return what /status says about the process. `started` is in unix seconds."""
    return document_of(
        Process(
            version=__version__,
            started=int(started),
            group=settings.kafka.group_id,
            topics=settings.kafka.topics,
            sends_to=settings.pinterest.api_url,
            test_mode=settings.pinterest.test_mode,
            fast_path=building.fast_path(settings),
            transform=settings.pinstream.transform,
        )
    )


@contextlib.asynccontextmanager
async def member(
    settings: Settings, traces: Tracing | None = None, *, fail_fast: bool = False
) -> AsyncIterator[Member]:
    """Read the configuration of a group member, whose parts are opened later; at the end, close them in reverse.

    `fail_fast`: see `Start`. Raises `PinstreamError`.
    """
    traces = traces or Tracing()
    async with Parts() as parts:
        # Opened first and closed last, so that the spans of closing are sent too.
        parts.add("the export of traces", traces.close)
        # The page is opened before these parts, and closed before them.
        opened = await parts.enter_async_context(Parts())
        building.require_limits(settings)
        # What can be wrong with the configuration is built first: a mistake opens no store and no connection.
        schemas = building.local_schemas(settings)
        mapped = building.sections(settings, schemas)
        transformer = building.transformer(settings, mapped)
        members = building.quota_members(settings)
        said = building.announcement_of(settings, mapped)
        limits = replace(
            building.policy(settings),
            trace_links=traces.links,
            quota_members=members,
            fingerprint=said.fingerprint,
            announcement=said,
        )
        pipeline = building.pipeline(settings, mapped, limits)
        for warning in mapped.warnings:
            structlog.get_logger().warning("setting", text=warning)

        async def open_parts() -> Service:
            # In a thread: it may be large, or wait for another process that has it locked.
            key_store = await run_blocking("pinstream-key-store", building.service_key_store, settings, said)
            opened.add("the key store", key_store.close)
            if (reads := account_reads(settings)) is not None:
                one.quality = QualityWatch(settings, reads, one.statistics)
                opened.add("the questions about event quality", one.quality.close)
            return building.service(
                settings,
                pipeline,
                lambda listener: traces.source(_source(settings, listener)),
                key_store,
                schemas,
                transformer,
                opened,
                building.Wraps(
                    traces.api,
                    traces.convert,
                    receipts=receipt_writer(settings, pipeline, mapped, "run", opened),
                ),
            )

        one = Member(Start(settings, fail_fast), pipeline, open_parts, parts)
        # One deadline covers the whole stop.
        traces.left = parts.left = opened.left = one.grace_left
        yield one


def _source(settings: Settings, listener: Service) -> KafkaSource:
    hooks = Hooks(
        listener,
        on_error=building.log_kafka_error,
        on_news=listener.feed,
        # Members divide the quota by how many they are, unless a shared key store counts their calls.
        counts_members=building.quota_members(settings) > 0,
        # Longer than the engine's own deadline, which then ends the drain in order.
        revoke_timeout=settings.pinstream.shutdown_grace + REVOKE_MARGIN,
    )
    return KafkaSource(
        # Producers and admin clients get the same properties, without the group: librdkafka warns of it there.
        {**settings.kafka.client_properties(), "group.id": settings.kafka.group_id},
        settings.kafka.topics,
        hooks,
        own_topics=settings.pinstream.own_topics,
        offset_reset=settings.kafka.auto_offset_reset,
    )
