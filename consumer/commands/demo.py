"""``pinstream demo``: broker, sandbox, producer, consumer and page on this machine, with nothing to install first.

All parts are real except the broker: the consumer is that of ``pinstream run``, events go over HTTP to the sandbox,
keys to a store on disk, in a folder that is removed afterwards. The broker is librdkafka's mock cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from consumer import logs
from consumer.adapters.files import file_types
from consumer.adapters.kafka.producers import RecordProducer
from consumer.adapters.thread import run_on_loop
from consumer.app import building
from consumer.app.ending import on_stop_signal
from consumer.app.run import member
from consumer.avro.encode import Encoder, encoding
from consumer.commands.base import DebugCommand, flag_option, on_terminal, paced, say
from consumer.commands.live import Below, live_view
from consumer.commands.parsing import record_options
from consumer.commands.results import print_result, prose, table, time_taken
from consumer.demo.api import Sandbox
from consumer.demo.broker import embedded_broker
from consumer.demo.faults import DEMO_FAULTS, Faults
from consumer.demo.generator import EventGenerator
from consumer.demo.records import FileRecords, Produced, disturbed, made_up, moved_to_now
from consumer.errors import bug
from consumer.settings import load
from consumer.web.status import status_document

DEMO_TOPIC = "orders"
_ACCOUNT, _TOKEN = "549755885175", "demo"
# Most records that the producer may be ahead of the settled ones. The broker keeps only about 5 MB a partition.
_AHEAD = 4000
# Events per second of a demo without an end: a shop, not a load test.
_ENDLESS_RATE = 200.0
# Events that the sandbox of an endless demo remembers, about 30 MB: many more than can be sent again.
_MAX_IDS = 100_000
_FLUSH_TIMEOUT = 60.0
# Seconds to wait after Ctrl-C until all produced records are settled, so that the last figures agree.
_LAST_SECONDS = 5.0
# Seconds between two checks at the consumer's progress.
_POLL_EVERY = 0.02
# Seconds between two views of a terminal, and the rates in them.
_DRAW_EVERY = 0.25
_RATES = ("produced", "settled", "delivered")


@click.command(cls=DebugCommand)
@record_options(f"{_ENDLESS_RATE:g} without --events and --file, else as fast as possible")
@click.option(
    "--file", "path", type=click.Path(path_type=Path), help="Send the records of this file (NDJSON or Avro)."
)
@flag_option("--faults", help="Make the sandbox misbehave: 429, 5xx, slow and dropped answers.")
@flag_option("--keep", help="At the end, leave the page up until Ctrl-C.")
@flag_option("--json", "as_json", help="The last line on stdout is the final /status document.")
def demo(**options: Any) -> None:
    """Run the whole system on this machine: broker, sandbox, producer, consumer and page.

    It needs no other software. Each event gets the time at which it is produced, as if the shop were live.
    It ends with the ledger.
    """
    with tempfile.TemporaryDirectory(prefix="pinstream-demo-") as folder:
        run_on_loop(_Demo(**options).run(os.environ, folder))


def _settings(environ: Mapping[str, str], brokers: str, url: str, folder: str) -> dict[str, str]:
    """Return the environment of the demo. The user's PINSTREAM_… settings stay in force."""
    # HOME is needed because the default of the state folder is below it.
    own = {name: value for name, value in environ.items() if name.startswith("PINSTREAM_") or name == "HOME"}
    defaults = {
        "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:8080",
        # Without a terminal, stderr has only what ends the demo.
        "PINSTREAM_LOG_LEVEL": "warning" if on_terminal() else "error",
        # With `--invalid 0.9`, most records are dead letters on purpose.
        "PINSTREAM_DEAD_LETTER_SHARE": "1",
    }
    return {
        **defaults,
        **own,
        # After the user's settings: the demo must reach nothing but its own broker, sandbox and folder.
        "PINSTREAM_STATE_DIR": folder,
        "PINSTREAM_KEY_STORE": f"disk:{folder}/keys",
        "PINSTREAM_KEY_STORE_PASSWORD": "",
        "PINSTREAM_KEY_STORE_PASSWORD_FILE": "",
        "KAFKA_BOOTSTRAP_SERVERS": brokers,
        "KAFKA_TOPICS": DEMO_TOPIC,
        # A classic group's first rebalance takes this broker three seconds.
        "KAFKA_GROUP_PROTOCOL": "consumer",
        "PINTEREST_AD_ACCOUNT_ID": _ACCOUNT,
        "PINTEREST_ACCESS_TOKEN": _TOKEN,
        "PINTEREST_READ_TOKEN": _TOKEN,
        "PINTEREST_API_URL": url,
    }


@dataclass(kw_only=True)
class _Demo:
    """Producer and consumer side by side, until all produced records are settled and committed."""

    events: int | None
    path: Path | None
    duplicates: float
    invalid: float
    faults: bool
    keep: bool
    as_json: bool
    seed: int
    rate: float | None
    produced: int = 0

    def __post_init__(self) -> None:
        # Whether the demo ends by itself.
        self.bounded = self.events is not None or self.path is not None
        self._stopped = asyncio.Event()
        # Ctrl-C sets the event, and the time until which records are waited for.
        self._give_up_at = math.inf
        self._reported = False

    async def run(self, environ: Mapping[str, str], folder: str) -> None:
        """Open all parts, produce and deliver, print how every record ended."""
        sandbox = Sandbox(
            token=_TOKEN,
            faults=DEMO_FAULTS if self.faults else Faults(),
            max_ids=None if self.bounded else _MAX_IDS,
            seed=self.seed,
        )
        async with contextlib.AsyncExitStack() as stack:
            url = await sandbox.start()
            stack.push_async_callback(sandbox.stop)
            brokers = await stack.enter_async_context(embedded_broker())
            settings = load(_settings(environ, brokers, url, folder))
            # An address that the user chose is not replaced.
            self._or_any_port = "PINSTREAM_HTTP_ADDRESS" not in environ
            logs.configure(log_format=settings.pinstream.log_format, level=settings.pinstream.log_level)
            self._sections = building.sections(settings)
            # At Pinterest, a person registers the advertiser's own event names.
            sandbox.own_events = self._sections.own_events
            self._producer = RecordProducer(settings.kafka.client_properties())
            stack.push_async_callback(self._producer.close)
            self._member = await stack.enter_async_context(member(settings))
            self._service = await self._member.open()
            self._sandbox, self._settings = sandbox, settings
            document = await self._deliver()
        if not self._reported:
            self._report(document)
        ledger = document["ledger"]
        if document["ledger_mismatch"]:
            raise bug("the ledger does not add up")
        if self.bounded and not ledger["open"] and ledger["read"] < self.produced:
            unread = self.produced - ledger["read"]
            say(f"stopped early: {unread} of {self.produced} produced records were not read yet")

    def _report(self, document: dict[str, Any]) -> None:
        """Print how every record ended."""
        document["sandbox"] = self._sandbox.counts().as_json()
        print_result(partial(_show, self._took), document, as_json=self.as_json, beside=True)
        self._reported = True

    async def _deliver(self) -> dict[str, Any]:
        """Produce and consume to the end. Return the final /status document."""
        on_stop_signal(self._stop)
        urls = await self._member.serve_page(or_any_port=self._or_any_port)
        where = f"page: {urls.page}    ledger: {urls.page}status" if urls else "page: off"
        say(f"{where}    Ctrl-C ends it")
        self._begun = time.monotonic()
        feeding = asyncio.create_task(self._feed())
        # The broker creates the topic with the first record. The consumer must not join before.
        while not self._producer.delivered and not feeding.done() and not self._stopped.is_set():
            await asyncio.sleep(_POLL_EVERY)
        # If the producer has ended, it may have failed, for example because a file cannot be read.
        if feeding.done():
            feeding.result()
        serving = asyncio.create_task(self._service.run())
        try:
            await self._watch(feeding, serving, urls.page if urls else "off")
            # Read before the stop, so that the figures are those of a member with its partitions.
            document = status_document(self._service.statistics(), self._member.info())
            self._took = time.monotonic() - self._begun
            if self.keep and not self._stopped.is_set() and not serving.done():
                self._report(document)
                say(f"{where}    It stays up until Ctrl-C")
                stopped = asyncio.create_task(self._stopped.wait())
                await asyncio.wait((stopped, serving), return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
            self._service.request_stop()
            await serving
            await feeding
        finally:
            for task in (feeding, serving):
                task.cancel()
            await asyncio.gather(feeding, serving, return_exceptions=True)
        return document

    def _stop(self) -> None:
        self._stopped.set()
        self._give_up_at = time.monotonic() + _LAST_SECONDS

    # -- producing

    async def _feed(self) -> None:
        rate = self.rate or (None if self.bounded else _ENDLESS_RATE)
        async for _, record in paced(self._records(), rate, self._stopped):
            # The embedded broker drops old records when it is full, even unread ones.
            while self.produced - self._settled() >= _AHEAD and not self._stopped.is_set():
                await asyncio.sleep(_POLL_EVERY)
            if self._stopped.is_set():
                break
            await self._producer.produce(DEMO_TOPIC, record.key, record.value, headers=record.headers)
            self.produced += 1
        await self._producer.flush(_FLUSH_TIMEOUT)

    def _records(self) -> Iterator[Produced]:
        records: Iterator[Produced]
        if self.path is None:
            # The generated shop has one type of records: that of the mapping, or of its first section.
            generator = EventGenerator(self.seed, time.time, self.duplicates, self.invalid)
            records = made_up(generator, Encoder(self._sections.all[0].schema).encode)
        else:
            encode = encoding(self._sections)
            types = file_types(self._sections, topic=DEMO_TOPIC)
            # A file may be old, and the sandbox refuses events that are older than a week.
            given = FileRecords(str(self.path), types, encode, moved_to_now(self._sections))
            records = disturbed(given, self.duplicates, self.invalid, self.seed, encode)
        return islice(records, self.events)

    def _settled(self) -> int:
        return sum(self._service.statistics().settled.values())

    # -- watching

    async def _watch(self, feeding: asyncio.Task[None], serving: asyncio.Task[None], where: str) -> None:
        """Wait until all produced records are settled, or until one of the tasks fails; on a terminal, show how far it
        is."""
        below = Below(sys.stderr) if on_terminal() and os.environ.get("TERM") != "dumb" else None
        drawn_at = measured_at = -math.inf
        before, rates = (0, 0, 0), dict.fromkeys(_RATES, 0.0)
        if below is not None:
            pinstream = self._settings.pinstream
            logs.configure(log_format=pinstream.log_format, level=pinstream.log_level, stream=below)
        try:
            while not serving.done():
                settled, all_are_known, now = self._settled(), feeding.done(), time.monotonic()
                if below is not None and now - drawn_at >= _DRAW_EVERY:
                    statistics, drawn_at = self._service.statistics(), now
                    # Over a second: in a shorter time there is a batch, or none.
                    if now - measured_at >= 1:
                        counts = (self.produced, settled, statistics.totals.delivered)
                        seconds = min(now - measured_at, now - self._begun)
                        rates = {
                            name: (count - was) / seconds
                            for name, count, was in zip(_RATES, counts, before, strict=True)
                        }
                        measured_at, before = now, counts
                    of = self.produced if all_are_known else self.events if self.path is None else None
                    progress = (
                        f"{settled:,}{'' if of is None else f' of {of:,}'} in {time_taken(now - self._begun)}"
                    )
                    below.draw(live_view(statistics, rates, progress, where))
                if all_are_known:
                    feeding.result()
                    if settled >= self.produced and self._service.pipeline.committed():
                        return
                    # A guard that has stopped the intake waits for a person.
                    if self._service.statistics().guard is not None or now > self._give_up_at:
                        return
                await asyncio.wait((serving,), timeout=_POLL_EVERY)
        finally:
            if below is not None:
                below.close()
                logs.configure(log_format=pinstream.log_format, level=pinstream.log_level)


def _show(seconds: float, document: dict[str, Any], console: Console) -> None:
    found = table("ledger", ">records", title="how every record ended")
    for name, count in document["ledger"].items():
        found.add_row(name, f"{count:,}")
    found.add_section()
    for name in ("accepted_events", "distinct_event_ids", "value_sum"):
        value = document["sandbox"][name]
        found.add_row(f"sandbox: {name}", f"{value if isinstance(value, int) else Decimal(value):,}")
    found.add_row("process: fast_path", document["process"]["fast_path"])
    console.print(found)
    counts, ledger, latency = document["counts"], document["ledger"], document["destination"]["latency"]
    settled = ledger["read"] - ledger["open"]
    calls = [
        f"{name} {time_taken(latency[name])}" for name in ("p50", "p95", "p99") if latency[name] is not None
    ]
    lines = [
        f"{settled:,} records in {time_taken(seconds)}: {settled / max(seconds, 0.001):,.0f} a second"
        + (f"; calls took {', '.join(calls)}" if calls else "")
    ]
    faults = Counter(counts["no_verdicts"]) + Counter({"http_429": counts["answers"].get("429", 0)})
    if faults:
        each = (f"{number:,} x {name.replace('http_', 'HTTP ')}" for name, number in faults.most_common())
        lines.append(f"faults survived: {', '.join(each)}")
    refused = [
        (number, f"{stage} {code}: {document['samples']['rejections'][stage][code]}")
        for stage, codes in counts["rejections"].items()
        for code, number in codes.items()
    ]
    if refused:
        lines.append("why records were refused:")
        lines += [f"  {number:,} {why}" for number, why in sorted(refused, reverse=True)]
    for line in lines:
        prose(console, line)
