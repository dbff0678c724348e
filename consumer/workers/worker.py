"""One worker: an ordinary member of the group with its share of the budgets, which reports to a supervisor.

It has no page of its own. Signals from the terminal are not for it (the supervisor hears them, and asks it); asked to
stop twice, it stops once: who wants it gone at once sends SIGKILL, which loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping

from consumer import logs
from consumer.app import tracing
from consumer.app.run import Member, before, hangs_after, look_at_cluster, member, serve
from consumer.app.tracing import Tracing
from consumer.errors import PinstreamError
from consumer.settings import Settings, load
from consumer.web.health import sickness
from consumer.workers.line import Line, Said
from consumer.workers.shares import share
from consumer.workers.supervision import MARGIN

REPORT_EVERY = 0.5
"""Seconds between two reports: so old is what /status says of a worker, at most."""


def run_worker(environ: Mapping[str, str], number: int, count: int) -> None:
    """Work until asked to stop. Ends the process with the exit code of what went wrong, and tells the supervisor."""
    line = Line.take()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        settings = share(load(environ), number, count)
        line.end_with_it(settings.pinstream.shutdown_grace + MARGIN)
        logs.configure(
            log_format=settings.pinstream.log_format,
            level=settings.pinstream.log_level,
            always={"worker": number},
        )
        traces = tracing.start(environ, settings.kafka.group_id, settings.pinterest.api_url)
        asyncio.run(_run(settings, traces, line))
        line.end()
    except PinstreamError as error:
        # One line for all: the supervisor says it.
        line.end(Said(error=str(error)))
        sys.exit(error.exit_code)
    except Exception as error:
        line.end(Said(error=f"unexpected {type(error).__name__}"))
        raise


async def _run(settings: Settings, traces: Tracing, line: Line) -> None:
    asked = asyncio.Event()
    async with member(settings, traces=traces) as one:

        def stop() -> None:
            asked.set()
            one.service.request_stop()

        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)
        reporter = _Reporter(one, line)
        async with reporter.reporting():
            if await before(asked, look_at_cluster(settings)):
                reporter.joined = True
                await serve(one)


class _Reporter:
    """Says twice a second how things are, and once more at the end."""

    def __init__(self, one: Member, line: Line) -> None:
        self.joined = False
        self._member = one
        self._line = line
        self._hangs_after = hangs_after(one.settings)

    @contextlib.asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Reports are made within."""
        task = asyncio.create_task(self._go_on())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            self._line.say(self._said())

    async def _go_on(self) -> None:
        while True:
            self._line.say(self._said())
            await asyncio.sleep(REPORT_EVERY)

    def _said(self) -> Said:
        service, key_store = self._member.service, self._member.info()["key_store"]
        try:
            statistics = service.statistics()
        except Exception as error:  # the core found its books wrong; a single process's health says the same
            unreadable = f"the figures cannot be read ({type(error).__name__})"
            return Said(self.joined, sickness=unreadable, key_store=key_store)
        ill = sickness(
            statistics,
            time.monotonic(),
            service.fetched_at,
            hangs_after=self._hangs_after,
            broken=service.key_store_broken,
        )
        return Said(self.joined, statistics, ill, key_store)
