"""``pinstream run``: the service, from settings to exit code."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any

import structlog

from consumer import __version__
from consumer.adapters.conversions_api import FileToken
from consumer.adapters.kafka import DeadLetterProducer, KafkaSource, describe
from consumer.adapters.kafka.configuration import longest_commit
from consumer.adapters.key_store import KeyStore, open_key_store
from consumer.app import building, tracing
from consumer.app.signals import on_stop_signal
from consumer.app.tracing import NoTracing, Tracing
from consumer.engine.statistics import Statistics
from consumer.errors import DestinationRefused
from consumer.service import Service, SystemClock
from consumer.settings import REVOKE_MARGIN, PinstreamSettings, Settings, load
from consumer.web.health import FETCH_HANGS_AFTER
from consumer.web.server import Urls, WebServer
from consumer.web.status import Process, ledger

_DESCRIBE_TIMEOUT = 15.0

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_FREE = 16 * 1024 * 1024
"""Bytes at the top of the heap that are kept though they are free."""
_MAPPED_ALONE = 8 * 1024 * 1024
"""Bytes from which on a block is mapped by itself, and given back as soon as it is freed."""

REFUSED_ADVICE = (
    "nothing was lost: set a valid token in PINTEREST_ACCESS_TOKEN or its file, make sure that it may write to that "
    "ad account (PINTEREST_AD_ACCOUNT_ID), and start again"
)


def run_service(environ: Mapping[str, str]) -> None:
    """Serve until SIGTERM or SIGINT. Raises what is in the error tree."""
    settings = load(environ)
    building.set_up_logs(settings)
    traces = tracing.start(environ, settings.kafka.group_id, settings.pinterest.api_url)
    asyncio.run(_run(settings, traces))


async def _run(settings: Settings, traces: Tracing) -> None:
    async with member(settings, traces=traces) as one:
        asked = asyncio.Event()

        def stop() -> None:
            asked.set()
            one.service.request_stop()

        on_stop_signal(stop)
        # First of all, so that who waits for brokers that are away sees which ones, and probes get an answer.
        log_starting(settings, await one.serve_page())
        if await before(asked, look_at_cluster(settings)):
            await serve(one)


def log_starting(settings: Settings, urls: Urls | None) -> None:
    """Where it reads, where it sends, where its page is."""
    structlog.get_logger().info(
        "starting",
        reads=", ".join(settings.kafka.topics),
        brokers=settings.kafka.bootstrap_servers,
        group=settings.kafka.group_id,
        sends_to=settings.pinterest.api_url,
        ad_accounts=", ".join(settings.pinterest.ad_account_ids),
        test_mode=settings.pinterest.test_mode,
        fast_path=building.fast_path(settings),
        page=urls.page if urls else "off",
        health=urls.health if urls else "off",
        version=__version__,
    )


async def serve(one: Member) -> None:
    """Be a member of the group until asked to stop."""
    tune_memory()
    if one.service.pipeline.stopping:
        # Told to stop while it was still starting: it has joined nothing yet, so there is nothing to leave.
        return
    try:
        await one.service.run()
    except DestinationRefused as refused:
        raise DestinationRefused(f"{refused}; {REFUSED_ADVICE}") from refused
    structlog.get_logger().info("stopped", **ledger(one.service.statistics().totals))


async def look_at_cluster(settings: Settings) -> None:
    """Whether brokers and topics are there, before the group is joined. Raises `KafkaError`."""
    await describe(
        settings.kafka.client_properties(),
        settings.kafka.topics,
        timeout=_DESCRIBE_TIMEOUT,
        dead_letter_topic=settings.pinstream.dead_letter_topic,
    )


async def before(asked: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Whether `work` was done before anyone `asked` to stop; raises what it raises."""
    doing, stopping = asyncio.create_task(work), asyncio.create_task(asked.wait())
    await asyncio.wait((doing, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not doing.done():
        doing.cancel()
        return False
    await doing
    return True


def tune_memory() -> None:
    """Fewer, later garbage collections, and freed memory that stays ours for the next batch.

    Collector: what is made at start lives for ever, and an event's objects hold no cycles. With the default threshold
    of 700 the collector walks the open events over and over and finds nothing; that costs about a tenth of an event's
    time (docs/performance.md).

    Allocator: glibc gives the top of the heap back once 128 KiB of it are free, and maps what is larger by itself; each
    batch of a megabyte would be asked for and cleared page by page again, 0.4 µs an event. Other C libraries have no
    such knob, and none is needed.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_FREE)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_ALONE)


class Member:
    """One group member with all its parts open; `service` runs it."""

    def __init__(self, settings: Settings, service: Service, key_store: KeyStore) -> None:
        self.settings = settings
        self.service = service
        self.key_store = key_store
        self._started = time.time()
        self._web: WebServer | None = None

    async def serve_page(self) -> Urls | None:
        """Start page, /status, health and metrics; gives their URLs, None if they are turned off."""
        self._web = web_server(
            self.settings,
            self.service.statistics,
            self.info,
            fetched_at=lambda: self.service.fetched_at,
            hangs_after=hangs_after(self.settings),
            broken=lambda: self.service.key_store_broken,
            keys=lambda: self.key_store.statistics().keys,
        )
        return None if self._web is None else await self._web.start()

    def info(self) -> dict[str, Any]:
        """What the process knows of itself, for /status."""
        keys = self.key_store.statistics()
        return {
            "process": process(self.settings, self._started),
            "key_store": {
                "keys": keys.keys,
                "bytes": keys.bytes_used,
                "buckets": keys.buckets,
                "evicted_early": keys.evicted_early,
            },
        }

    async def close(self) -> None:
        """Stop the web server."""
        if self._web is not None:
            await self._web.stop()


def web_server(
    settings: Settings,
    snapshot: Callable[[], Statistics],
    info: Callable[[], dict[str, Any]],
    **others: Any,
) -> WebServer | None:
    """Page, /status, health and metrics as the settings have them, not started yet; None: they are turned off.

    `others`: what else the server takes.
    """
    address = settings.pinstream.http_address
    if address is None:
        return None
    return WebServer(
        snapshot,
        info,
        host=address.host,
        port=address.port,
        page_at=settings.pinstream.page_address,
        token=_page_token(settings.pinstream),
        **others,
    )


def hangs_after(settings: Settings) -> float:
    """Seconds after which a fetch hangs: a rebalance within it waits for a drain, and for a commit.

    The commit's limit is a setting, and a broker that does not answer within it is no reason for a restart.
    """
    asking = max(FETCH_HANGS_AFTER, 2 * longest_commit(settings.kafka.client_properties()))
    return settings.pinstream.shutdown_grace + REVOKE_MARGIN + asking


def process(settings: Settings, started: float) -> Process:
    """What /status says of the process; `started`: unix seconds."""
    return {
        "version": __version__,
        "started": int(started),
        "group": settings.kafka.group_id,
        "topics": list(settings.kafka.topics),
        "sends_to": settings.pinterest.api_url,
        "test_mode": settings.pinterest.test_mode,
        "fast_path": building.fast_path(settings),
    }


def _page_token(own: PinstreamSettings) -> Callable[[], str] | None:
    """What the page asks for; from a file, it is read again when that changes."""
    if own.http_token is not None:
        return own.http_token.get_secret_value
    if own.http_token_file is None:
        return None
    return FileToken(own.http_token_file, "PINSTREAM_HTTP_TOKEN_FILE").value


@contextlib.asynccontextmanager
async def member(
    settings: Settings, wall: Callable[[], float] = time.time, traces: Tracing | None = None
) -> AsyncIterator[Member]:
    """All parts of a group member, opened in order and closed in reverse."""
    traces = traces or NoTracing()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(traces.close)
        schemas = building.local_schemas(settings)
        schema = building.reader_schema(settings, schemas)
        pipeline = building.pipeline(settings, schema, trace_links=traces.links)
        api = building.conversions_api(settings)
        stack.push_async_callback(api.close)
        building.make_state_folder(settings.pinstream.state_dir)
        key_store = open_key_store(
            settings.pinstream.key_store.get_secret_value(),
            window=settings.pinstream.dedup_window,
            max_bytes=settings.pinstream.key_store_max_bytes,
        )
        stack.push_async_callback(key_store.close)
        dead_letters = DeadLetterProducer(
            settings.kafka.client_properties(),
            topic=settings.pinstream.dead_letter_topic,
            on_trouble=log_kafka_trouble,
        )
        stack.push_async_callback(dead_letters.close)
        writers = building.writer_schemas(settings, schemas)
        stack.push_async_callback(writers.close)
        service = Service(
            pipeline,
            connect=lambda listener: traces.source(_source(settings, listener)),
            api=traces.api(api),
            key_store=key_store,
            schemas=writers,
            dead_letters=dead_letters,
            clock=SystemClock(wall),
            report=building.log_report,
            grace=settings.pinstream.shutdown_grace,
            tracer=traces,
        )
        traces.within(service.grace_left)
        one = Member(settings, service, key_store)
        stack.push_async_callback(one.close)
        yield one


def _source(settings: Settings, listener: Service) -> KafkaSource:
    grace = settings.pinstream.shutdown_grace
    return KafkaSource(
        {**settings.kafka.client_properties(), "group.id": settings.kafka.group_id},
        settings.kafka.topics,
        listener=listener,
        dead_letter_topic=settings.pinstream.dead_letter_topic,
        offset_reset=settings.kafka.auto_offset_reset,
        on_trouble=log_kafka_trouble,
        on_topic_ids=listener.topic_ids_told,
        revoke_timeout=grace + REVOKE_MARGIN,
    )


def log_kafka_trouble(code: str, text: str) -> None:
    """What librdkafka mends by itself becomes a log line."""
    structlog.get_logger().warning("kafka_trouble", code=code, text=text)
