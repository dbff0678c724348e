"""``pinstream demo``: broker, sandbox, producer, consumer and page in one place, with nothing to install first.

Everything real runs: records go through a broker's socket, the consumer is the one of ``pinstream run``, events go
over HTTP to the sandbox, keys to an LMDB store in a folder that is removed afterwards. Only the broker is
librdkafka's mock cluster, which keeps about 5 MB a partition: the producer stays within reach of the consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from consumer import logs
from consumer.adapters.kafka import RecordProducer
from consumer.app import building
from consumer.app.run import Member, member
from consumer.app.signals import on_stop_signal
from consumer.avro.encode import Encoder, SingleObject
from consumer.commands.base import Command, on_terminal, pause, say
from consumer.demo.api import Sandbox
from consumer.demo.broker import EmbeddedBroker
from consumer.demo.faults import DEMO_FAULTS, Faults
from consumer.demo.generator import EventGenerator, restamp
from consumer.demo.records import FileRecords, Produced, made_up, with_duplicates, with_invalid
from consumer.errors import InvariantViolation
from consumer.settings import Settings, load
from consumer.web.status import status_document

TOPIC = "orders"
_ACCOUNT, _TOKEN = "549755885175", "demo"
_AHEAD = 4000
"""Records the producer may be ahead of what is settled: well within what the broker keeps (`EmbeddedBroker`)."""
_ENDLESS_RATE = 200.0
"""Events a second when nobody said how many: a shop, not a load test."""
_MOST_IDS = 100_000
"""Events that the sandbox of an endless demo remembers, some 30 MB: many times what is ever under way, and so what may
be sent again."""
_FLUSH_TIMEOUT = 60.0
_LAST_SECONDS = 5.0
"""After Ctrl-C, how long to wait for what was produced to be settled, so that the last figures agree."""
_LOOK = 0.02
"""Seconds between looks at how far the consumer is."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The command line's options."""

    events: int | None
    path: Path | None
    duplicates: float
    invalid: float
    faults: bool
    as_json: bool
    seed: int
    rate: float | None

    @property
    def bounded(self) -> bool:
        """Whether it ends by itself."""
        return self.events is not None or self.path is not None


@click.command(cls=Command)
@click.option(
    "--events",
    type=click.IntRange(min=1),
    help="Stop after N events and print the ledger. Default: run until Ctrl-C.",
)
@click.option(
    "--file", "path", type=click.Path(path_type=Path), help="Send the records of this file (NDJSON or Avro)."
)
@click.option(
    "--duplicates",
    type=click.FloatRange(0, 0.9),
    default=0.0,
    help="Share of events that are produced twice, such as 0.05.",
)
@click.option(
    "--invalid", type=click.FloatRange(0, 0.9), default=0.0, help="Share of invalid records, such as 0.01."
)
@click.option(
    "--faults", is_flag=True, help="Make the sandbox misbehave: 429, 5xx, slow and dropped answers."
)
@click.option(
    "--json", "as_json", is_flag=True, help="The last line on stdout is the final /status document."
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="The same seed gives the same events and faults."
)
@click.option(
    "--rate", type=click.FloatRange(min=0.01), help="Events per second. Default: as fast as possible."
)
def demo(**options: Any) -> None:
    """Run the whole system on this machine: broker, sandbox, producer, consumer and page.

    It needs no other software. Each event gets the time at which it is produced, as if the shop were live.
    """
    with tempfile.TemporaryDirectory(prefix="pinstream-demo-") as folder:
        asyncio.run(_demo(DemoOptions(**options), os.environ, folder))


async def _demo(options: DemoOptions, environ: Mapping[str, str], folder: str) -> None:
    sandbox = Sandbox(
        token=_TOKEN,
        faults=DEMO_FAULTS if options.faults else Faults(),
        most_ids=None if options.bounded else _MOST_IDS,
        seed=options.seed,
    )
    async with contextlib.AsyncExitStack() as stack:
        url = await sandbox.start()
        stack.push_async_callback(sandbox.stop)
        broker = await stack.enter_async_context(EmbeddedBroker())
        settings = load(_settings(environ, broker.bootstrap_servers, url, folder))
        logs.configure(log_format=settings.pinstream.log_format, level=settings.pinstream.log_level)
        # What the mapping declares is registered with this platform.
        schema = building.reader_schema(settings, building.local_schemas(settings))
        sandbox.register(building.mapping(settings, schema).own_events)
        producer = RecordProducer(settings.kafka.client_properties())
        stack.push_async_callback(producer.close)
        one = await stack.enter_async_context(member(settings))
        run = _DemoRun(options, settings, one, producer)
        document = await run.run()
    document["sandbox"] = sandbox.counts().as_json()
    _print(document, options)
    _check(document, run.produced, options)


def _settings(environ: Mapping[str, str], brokers: str, url: str, folder: str) -> dict[str, str]:
    """The demo's environment: PINSTREAM_… of the user's holds; where records come from and go to, and what
    survives, is ours."""
    own = {name: value for name, value in environ.items() if name.startswith("PINSTREAM_") or name == "HOME"}
    defaults = {
        "PINSTREAM_HTTP_ADDRESS": _free_address(8080),
        "PINSTREAM_LOG_LEVEL": "error",
        # `--invalid 0.9` is meant: nobody would come to mend it.
        "PINSTREAM_DEAD_LETTER_SHARE": "1",
    }
    return {
        **defaults,
        **own,
        "PINSTREAM_STATE_DIR": folder,
        "KAFKA_BOOTSTRAP_SERVERS": brokers,
        "KAFKA_TOPICS": TOPIC,
        # The broker assigns at once; a classic group's first rebalance takes it three seconds.
        "KAFKA_GROUP_PROTOCOL": "consumer",
        "PINTEREST_AD_ACCOUNT_ID": _ACCOUNT,
        "PINTEREST_ACCESS_TOKEN": _TOKEN,
        "PINTEREST_API_URL": url,
    }


def _free_address(port: int) -> str:
    """Loopback at `port`, or at any free one if that is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return "127.0.0.1:0"
    return f"127.0.0.1:{port}"


class _DemoRun:
    """Producer and consumer side by side, until all that was produced is settled and committed."""

    def __init__(
        self, options: DemoOptions, settings: Settings, one: Member, producer: RecordProducer
    ) -> None:
        self._options = options
        self._settings = settings
        self._member = one
        self._producer = producer
        self._stopped = asyncio.Event()
        self._stopped_at = math.inf
        self.produced = 0

    async def run(self) -> dict[str, Any]:
        """Gives the final /status document."""
        on_stop_signal(self._stop)
        urls = await self._member.serve_page()
        where = f"page: {urls.page}    ledger: {urls.page}status" if urls else "page: off"
        say(f"{where}    Ctrl-C ends it")
        # The broker makes the topic when the first record comes; the consumer joins when it is there.
        feeding = asyncio.create_task(self._feed())
        await self._first_record(feeding)
        serving = asyncio.create_task(self._member.service.run())
        watching = asyncio.create_task(self._watch(feeding))
        try:
            await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
            document = status_document(self._member.service.statistics(), self._member.info())
            self._member.service.request_stop()
            await serving
            await watching
        finally:
            for task in (feeding, watching, serving):
                task.cancel()
            await asyncio.gather(feeding, watching, serving, return_exceptions=True)
        return document

    def _stop(self) -> None:
        self._stopped.set()
        self._stopped_at = time.monotonic()

    async def _first_record(self, feeding: asyncio.Task[None]) -> None:
        while not self._producer.delivered and not feeding.done() and not self._stopped.is_set():
            await asyncio.sleep(_LOOK)
        if feeding.done():
            feeding.result()

    # -- producing

    async def _feed(self) -> None:
        rate = self._options.rate or (None if self._options.bounded else _ENDLESS_RATE)
        begun = time.monotonic()
        for record in self._records():
            await self._keep_pace(begun, rate)
            if self._stopped.is_set():
                break
            await self._producer.produce(TOPIC, record.key, record.value)
            self.produced += 1
        await self._producer.flush(_FLUSH_TIMEOUT)

    async def _keep_pace(self, begun: float, rate: float | None) -> None:
        while self.produced - self._settled() >= _AHEAD and not self._stopped.is_set():
            await asyncio.sleep(_LOOK)
        if rate is not None:
            await pause(begun + self.produced / rate - time.monotonic(), self._stopped)
        elif self.produced % 100 == 0:
            await asyncio.sleep(0)

    def _records(self) -> Iterator[Produced]:
        options = self._options
        schema = building.reader_schema(self._settings, building.local_schemas(self._settings))
        encoder = Encoder(schema, SingleObject())
        if options.path is None:
            generator = EventGenerator(options.seed, time.time, options.duplicates, options.invalid)
            return islice(made_up(generator, encoder), options.events)
        file = FileRecords(
            str(options.path), schema, encoder, lambda event: restamp(event, int(time.time() * 1000))
        )
        records: Iterator[Produced] = iter(file)
        records = with_duplicates(records, options.duplicates, options.seed)
        records = with_invalid(records, options.invalid, options.seed, time.time, encoder)
        return islice(records, options.events)

    def _settled(self) -> int:
        return self._member.service.pipeline.progress().settled

    # -- watching

    async def _watch(self, feeding: asyncio.Task[None]) -> None:
        with _progress() as progress:
            total = self._options.events if self._options.path is None else None
            task = progress.add_task("settled", total=total)
            while not (feeding.done() and self._over()):
                progress.update(
                    task, completed=self._settled(), total=self.produced if feeding.done() else total
                )
                if feeding.done():
                    feeding.result()
                await asyncio.sleep(_LOOK)
            progress.update(task, completed=self._settled(), total=self.produced)
        feeding.result()

    def _over(self) -> bool:
        guarded = self._member.service.pipeline.progress().guarded
        return self._complete() or guarded or time.monotonic() > self._stopped_at + _LAST_SECONDS

    def _complete(self) -> bool:
        """All that was produced is settled, and all that is settled is committed."""
        return self._settled() >= self.produced and self._member.service.pipeline.committed()


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not on_terminal(),
    )


def _print(document: dict[str, Any], options: DemoOptions) -> None:
    table = Table(title="how every record ended", title_justify="left")
    table.add_column("ledger")
    table.add_column("records", justify="right")
    for name, count in document["ledger"].items():
        table.add_row(name, f"{count:,}")
    table.add_section()
    counts = document["sandbox"]
    for name in ("accepted_events", "distinct_event_ids", "value_sum"):
        value = counts[name]
        table.add_row(f"sandbox: {name}", f"{value:,}" if isinstance(value, int) else str(value))
    Console(stderr=options.as_json).print(table)
    if options.as_json:
        click.echo(orjson.dumps(document))


def _check(document: dict[str, Any], produced: int, options: DemoOptions) -> None:
    ledger = document["ledger"]
    settled = sum(count for name, count in ledger.items() if name not in ("read", "open"))
    if ledger["read"] != settled + ledger["open"]:
        raise InvariantViolation("the ledger does not add up; please report this bug")
    if options.bounded and not ledger["open"] and ledger["read"] < produced:
        say(f"stopped early: {produced - ledger['read']} of {produced} produced records were not read yet")
