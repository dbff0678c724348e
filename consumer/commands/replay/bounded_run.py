"""A bounded run: serve until all of a source is read and settled, show the progress, print the result.

The engine has no notion of an end. So `run_to_end` checks several times a second whether the source has handed out
everything and no record is held or open any more, and then requests the stop, which is the same path as any stop
(docs/architecture.md, rule 6): with nothing open, the service only commits and leaves.

The progress is shown on stderr: a bar on a terminal, else a line every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from consumer import logs
from consumer.adapters.kafka.bounded import BoundedSource
from consumer.adapters.kafka.ranges import Range
from consumer.adapters.kafka.replay_progress import NamedProgress
from consumer.adapters.kafka.topic_ids import TopicIdWatch
from consumer.app import building
from consumer.app.ending import on_stop_signal
from consumer.app.run import tune_memory
from consumer.commands.base import on_terminal, say
from consumer.engine.figures.statistics import Statistics
from consumer.engine.model import Chunk, TopicPartition
from consumer.errors import Incomplete, PinstreamError
from consumer.ports import RecordSource
from consumer.service import Service
from consumer.settings import Settings, load

# Seconds between two checks whether the run is over.
_POLL_EVERY = 0.05
# Seconds between two lines in a log: often enough to show that the run goes on.
LINE_EVERY = 5.0
_WIDE = 100
# Why sending delivered events again is not harmless: the platform's one-hour rule.
DOUBLED = (
    "what happened more than an hour before it arrives counts as offline, and the platform does not drop doubles of "
    "that: each is a second conversion"
)


# Where the result of a complete run cannot be printed.
LOST = "; what was done stands: run it again with --dry-run to see what is left"


class FiniteSource(RecordSource, Protocol):
    """A source that ends."""

    @property
    def done(self) -> bool:
        """Return True if everything was handed out."""


class ReplayEnd(Enum):
    """How a run ended."""

    # All of the range is settled.
    COMPLETE = "complete"
    # As many records as ``--limit`` allows are settled; there may be more in the range.
    LIMITED = "limited"
    INTERRUPTED = "interrupted"
    # Too many of the records would have become dead letters.
    GUARDED = "guarded"
    # An error ended the run; see `Ran.failure`.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that is over: how it ended, its last figures, its length in seconds, and the error that ended it."""

    end: ReplayEnd
    statistics: Statistics
    seconds: float
    failure: PinstreamError | None = None

    def guarded(self) -> Incomplete | None:
        """Return why the guard ended the run, and what to do; None if it has not tripped."""
        if (guard := self.statistics.guard) is None:
            return None
        return Incomplete(
            f"stopped: {guard.rejected:,} of the latest {guard.of:,} records of {guard.topic} would be dead letters, "
            f"mostly for {guard.reason} ({guard.cause.value}); {guard.remedy} and run it again (or set "
            "PINSTREAM_DEAD_LETTER_SHARE=1 to let them all become dead letters)"
        )


def load_quietly(environ: Mapping[str, str], needs: Sequence[str]) -> Settings:
    """Return the settings of a command with a progress bar: by default, only warnings are logged."""
    if "PINSTREAM_LOG_LEVEL" not in environ:
        # librdkafka's own lines would break the bar. Important ones are logged as errors, or are the last line.
        logs.mute("consumer.kafka")
    settings = load({"PINSTREAM_LOG_LEVEL": "warning", **environ}, needs=needs)
    building.set_up_logs(settings)
    building.require_limits(settings)
    return settings


def bounded_source(
    settings: Settings, ranges: Sequence[Range], progress: NamedProgress | None = None
) -> BoundedSource:
    """Return a source that reads these ranges to their ends, and ends where a topic is created again."""
    config = settings.kafka.client_properties()
    ids, on_error = TopicIdWatch(config), building.log_kafka_error
    return BoundedSource(config, ranges, progress=progress, on_error=on_error, topic_ids=ids)


async def serve_to_end(
    service: Service,
    source: FiniteSource,
    what: str,
    total: int,
    progress: Callable[[Statistics], tuple[int, str]],
) -> Ran:
    """Run `service` over its `source`, and show how much of `total` is done and a note, by `progress`."""
    tune_memory()
    with watch(what, total) as show:
        return await run_to_end(service, source, lambda: show(*progress(service.statistics())))


async def run_to_end(service: Service, source: FiniteSource, show: Callable[[], None]) -> Ran:
    """Run until nothing is left to do, a signal comes, or the guard trips; `show` is called at each check.

    A `PinstreamError` that ends the service is returned in `Ran.failure`; any other error (a bug) is raised.
    """
    begun = time.monotonic()
    on_stop_signal(service.request_stop)
    serving = asyncio.create_task(service.run())
    end: ReplayEnd | None = None
    failure: PinstreamError | None = None
    try:
        # The service ends by itself only on a signal or a failure.
        while not serving.done() and (end := _state(service, source)) is None:
            show()
            await asyncio.wait((serving,), timeout=_POLL_EVERY)
        service.request_stop()
        await serving
    except PinstreamError as error:
        end, failure = ReplayEnd.FAILED, error
    finally:
        # The service must not outlive this call, after any error.
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    # Show again, with the final figures.
    show()
    # A signal after the last settlement interrupts nothing.
    end = end or _state(service, source) or ReplayEnd.INTERRUPTED
    return Ran(end, service.statistics(), time.monotonic() - begun, failure)


def _state(service: Service, source: FiniteSource) -> ReplayEnd | None:
    """Return how the run ends; None if it goes on."""
    now = service.statistics()
    # For a service the guard only stops the intake until an operator acts. No operator watches a replay.
    if now.guard is not None:
        return ReplayEnd.GUARDED
    if now.totals.open:
        return None
    # Records that are held because they do not fit yet, or were released while stopping, are not settled.
    if source.done and not now.held and not now.totals.released:
        return ReplayEnd.COMPLETE
    return ReplayEnd.LIMITED if service.pipeline.enough() else None


@contextlib.contextmanager
def watch(
    what: str, total: int, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, str], None]]:
    """Show progress over `total` records: yield a function that shows how many are done, with a short note beside it.

    A bar disappears at the end.
    """
    begun = said = clock()
    # Escape sequences of a bar would fill the log of a job.
    if not on_terminal():

        def line(done: int, note: str) -> None:
            nonlocal said
            now = clock()
            # No line at the beginning either, so that a short run prints none.
            if now - said >= LINE_EVERY:
                said = now
                say(progress_line(what, done, total, now - begun, note))

        yield line
        return

    console = Console(stderr=True)
    columns: list[ProgressColumn] = [
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(compact=True),
        # No markup: a note may quote what the platform or a proxy said, with brackets in it.
        TextColumn("{task.fields[note]}", markup=False),
    ]
    # On a narrow terminal the numbers matter more than the bar.
    if console.width >= _WIDE:
        columns[:0] = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, note="", rate="")

        def bar(done: int, note: str) -> None:
            # The rate since the beginning: that of the last second would jump with each batch.
            rate = f"{done / max(0.001, clock() - begun):,.0f}/s" if done else ""
            progress.update(task, completed=min(done, total), note=note, rate=rate)

        yield bar


async def scan_shown(
    what: str, ranges: Sequence[Range], scanned: AsyncGenerator[list[Chunk], None]
) -> AsyncGenerator[list[Chunk], None]:
    """Yield the chunks of a scan of `ranges`, and show its progress. Closes the scan, which a caller that stops early
    has to ask for (`aclosing`): a client of librdkafka that lives until the process ends can crash it."""
    # Count offsets: how many of them are records is not known before the end.
    at = {one.name: one.begin for one in ranges}
    begun, total = sum(at.values()), sum(one.end - one.begin for one in ranges)
    with watch(what, total) as show:
        async with contextlib.aclosing(scanned):
            async for chunks in scanned:
                yield chunks
                for one in chunks:
                    at[TopicPartition(one.topic, one.partition)] = one.records[-1].offset + 1
                show(sum(at.values()) - begun, "")


def progress_line(what: str, done: int, total: int, seconds: float, note: str) -> str:
    """Return ``replay: 1,200 of 69,659 (2%), 240 a second, about 5 min left, 1,100 delivered``."""
    # Offsets and events are counted at different moments, so the difference of the two can be out of bounds.
    done = max(0, min(done, total))
    rate = done / seconds if seconds > 0 else 0.0
    # While nothing moves, the time left cannot be estimated.
    left = f", {_time_left((total - done) / rate)} left" if rate > 0 else ""
    share = f"{done / total:.0%}" if total else "100%"
    text = f"{what}: {done:,} of {total:,} ({share}), {rate:,.0f} a second{left}"
    return f"{text}, {note}" if note else text


def _time_left(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
