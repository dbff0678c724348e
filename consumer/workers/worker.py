"""One worker: an ordinary member of the group with its share of the budgets, which reports to a supervisor.

A worker serves no page. It ignores SIGINT from the terminal, because the supervisor handles it and then asks the worker
to stop. A second SIGTERM changes nothing; SIGKILL ends it at once and loses nothing.
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
from consumer.web.health import why_unhealthy
from consumer.workers.line import ReportLine, WorkerReport
from consumer.workers.shares import worker_settings
from consumer.workers.supervision import MARGIN

REPORT_EVERY = 0.5
"""Seconds between two reports, and the maximum age of a worker's figures in /status."""


def run_worker(environ: Mapping[str, str], number: int, count: int) -> None:
    """Run worker `number` until it is asked to stop. An error is reported to the supervisor and sets the exit code."""
    line = ReportLine.take()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        settings = worker_settings(load(environ), number, count)
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
        # The supervisor prints the message, once for all workers.
        line.end(WorkerReport(error=str(error)))
        sys.exit(error.exit_code)
    except Exception as error:
        line.end(WorkerReport(error=f"unexpected {type(error).__name__}"))
        raise


async def _run(settings: Settings, traces: Tracing, line: ReportLine) -> None:
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
    """Reports to the supervisor twice a second, and once more at the end."""

    def __init__(self, one: Member, line: ReportLine) -> None:
        self.joined = False
        self._member = one
        self._line = line
        self._hangs_after = hangs_after(one.settings)

    @contextlib.asynccontextmanager
    async def reporting(self) -> AsyncIterator[None]:
        """Send reports while the context is open."""
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

    def _said(self) -> WorkerReport:
        service, key_store = self._member.service, self._member.info()["key_store"]
        try:
            statistics = service.statistics()
        except Exception as error:  # the ledger does not add up; the health of a single process says the same
            unreadable = f"the figures cannot be read ({type(error).__name__})"
            return WorkerReport(self.joined, unhealthy=unreadable, key_store=key_store)
        ill = why_unhealthy(
            statistics,
            time.monotonic(),
            service.fetched_at,
            hangs_after=self._hangs_after,
            broken=service.key_store_broken,
        )
        return WorkerReport(self.joined, statistics, ill, key_store)
