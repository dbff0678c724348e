"""Run a service whose source ends, until all of it is read and settled, or until a signal stops it.

The engine knows no ends. So this checks several times a second whether the source has handed out everything and
whether any of it is still held or open, and then asks for the stop, which is the same path as any stop
(docs/architecture.md, rule 6): with nothing open, the service only commits and leaves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from consumer import logs
from consumer.app import building
from consumer.app.run import tune_memory
from consumer.app.signals import on_stop_signal
from consumer.commands.replay.watch import watch
from consumer.engine.figures.statistics import Statistics
from consumer.errors import PinstreamError
from consumer.service import RecordSource, Service
from consumer.settings import Settings, load

# Seconds between two looks at whether it is over.
_LOOK = 0.05


class FiniteSource(RecordSource, Protocol):
    """A source that ends."""

    @property
    def done(self) -> bool:
        """Return True if everything was handed out."""


class ReplayEnd(Enum):
    """How a run ended."""

    # All of the range is settled.
    COMPLETE = "complete"
    # As many records as were asked for are settled; there may be more in the range.
    LIMITED = "limited"
    INTERRUPTED = "interrupted"
    # Too many of the records would have become dead letters.
    GUARDED = "guarded"
    # Something outside ended it; see `Ran.failure`.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that is over: how it ended, its last figures, its length in seconds, and the error that ended it."""

    end: ReplayEnd
    statistics: Statistics
    seconds: float
    failure: PinstreamError | None = None


def load_quietly(environ: Mapping[str, str], needs: Sequence[str]) -> Settings:
    """The settings of a command with a progress bar: unless they say otherwise, only warnings are logged."""
    if "PINSTREAM_LOG_LEVEL" not in environ:
        # librdkafka's own lines would break the bar. What matters of them is logged as trouble, or is the last line.
        logs.mute("consumer.kafka")
    settings = load({"PINSTREAM_LOG_LEVEL": "warning", **environ}, needs=needs)
    building.set_up_logs(settings)
    return settings


async def serve_to_end(
    service: Service,
    source: FiniteSource,
    what: str,
    total: int,
    progress: Callable[[Statistics], tuple[int, str]],
) -> Ran:
    """Run `service` over its `source`, and show meanwhile how much of `total` is done and a note, by `progress`."""
    tune_memory()
    with watch(what, total) as show:
        return await run_to_end(service, source, lambda: show(*progress(service.statistics())))


async def run_to_end(service: Service, source: FiniteSource, show: Callable[[], None]) -> Ran:
    """Run until nothing is left to do, a signal comes, or the guard trips; `show` is called at every look.

    What of the error tree ends the service is returned in `Ran.failure`; anything else (a bug) is raised.
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
            await asyncio.wait((serving,), timeout=_LOOK)
        service.request_stop()
        await serving
    except PinstreamError as error:
        end, failure = ReplayEnd.FAILED, error
    finally:
        # The service must not outlive this call, whatever was raised.
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
    # Once more, with the final figures.
    show()
    # A signal after the last settlement interrupts nothing.
    end = end or _state(service, source) or ReplayEnd.INTERRUPTED
    return Ran(end, service.statistics(), time.monotonic() - begun, failure)


def _state(service: Service, source: FiniteSource) -> ReplayEnd | None:
    """Return how the run ends; None if it goes on."""
    progress = service.pipeline.progress()
    # For a service the guard only stops the intake until an operator acts. No operator watches a replay.
    if progress.guarded:
        return ReplayEnd.GUARDED
    if progress.open:
        return None
    # Records that were read but do not fit yet, or were given back while stopping, are not settled.
    if source.done and not progress.held and not progress.released:
        return ReplayEnd.COMPLETE
    return ReplayEnd.LIMITED if progress.enough else None
