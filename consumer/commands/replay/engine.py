"""Runs a service whose source ends: until all of it is read and settled, or until it is told to stop.

Theory of operation. The core knows nothing of ends. Whoever runs it looks, several times a second, whether the source
has handed out all, and whether anything of it is still held or open; then asks for the stop, which is the same path
as any (docs/architecture.md, rule 6): with nothing open it only commits and leaves. Interrupted, it drains as the
service does.

The guard against poison (`consumer.engine.guard`) stops the intake of a service until an operator acts. It ends
a replay, which no operator watches.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from consumer.app.signals import on_stop_signal
from consumer.engine.model import TopicPartition
from consumer.engine.statistics import Statistics
from consumer.errors import PinstreamError
from consumer.service import RecordSource, Service

_LOOK = 0.05
"""Seconds between two looks at whether it is over."""


class FiniteSource(RecordSource, Protocol):
    """A source that ends."""

    @property
    def done(self) -> bool:
        """Whether all was handed out."""

    def figures(self) -> Mapping[TopicPartition, int]:
        """Up to where each partition was read."""


class ReplayEnd(Enum):
    """How a run ended."""

    COMPLETE = "complete"
    """All of the range is settled."""
    LIMITED = "limited"
    """As many records as were asked for are settled; there may be more in the range."""
    INTERRUPTED = "interrupted"
    GUARDED = "guarded"
    """Too many of the records would have become dead letters."""
    FAILED = "failed"
    """Something outside ended it; see `Ran.failure`."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that is over: how it ended, the last figures, how long it took in seconds, and what ended it if not we."""

    end: ReplayEnd
    statistics: Statistics
    seconds: float
    failure: PinstreamError | None = None


async def run_to_end(service: Service, source: FiniteSource, show: Callable[[], None]) -> Ran:
    """Run until nothing is left to do, a signal comes, or the guard trips; `show` is called at every look.

    What of the error tree ends the service is told in `Ran.failure`; what is beyond it (a bug) is raised.
    """
    begun = time.monotonic()
    on_stop_signal(service.request_stop)
    serving = asyncio.create_task(service.run())
    watching = asyncio.create_task(_until_over(service, source, show))
    failure: PinstreamError | None = None
    try:
        await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
        end = watching.result() if watching.done() else None
        service.request_stop()
        await serving
    except PinstreamError as error:
        end, failure = ReplayEnd.FAILED, error
    finally:
        for task in (watching, serving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(watching, serving, return_exceptions=True)
    show()
    # A signal at the very end interrupts nothing.
    end = end or _state(service, source) or ReplayEnd.INTERRUPTED
    return Ran(end, service.statistics(), time.monotonic() - begun, failure)


async def _until_over(service: Service, source: FiniteSource, show: Callable[[], None]) -> ReplayEnd:
    while (end := _state(service, source)) is None:
        show()
        await asyncio.sleep(_LOOK)
    return end


def _state(service: Service, source: FiniteSource) -> ReplayEnd | None:
    """How it ends, if it is over."""
    progress = service.pipeline.progress()
    if progress.guarded:
        return ReplayEnd.GUARDED
    if progress.open:
        return None
    if source.done and not progress.held and not progress.released:
        return ReplayEnd.COMPLETE
    return ReplayEnd.LIMITED if progress.enough else None
