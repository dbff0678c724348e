"""One worker: an ordinary member of the group with its share of the budgets, which reports to a supervisor.

A worker serves no page. A second SIGTERM changes nothing. SIGKILL ends it at once and loses nothing.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Mapping

from consumer import logs
from consumer.adapters.thread import run_on_loop
from consumer.app.ending import Ending
from consumer.app.run import Member, member
from consumer.app.telemetry import Tracing, environment
from consumer.errors import PinstreamError
from consumer.settings import Settings, load
from consumer.workers.line import REPORT_EVERY, ReportLine, WorkerReport
from consumer.workers.shares import worker_settings
from consumer.workers.supervision import MARGIN


def run_worker(environ: Mapping[str, str], number: int, count: int, *, fail_fast: bool = False) -> None:
    """Run worker `number` until it is asked to stop. An error is reported to the supervisor and sets the exit code."""
    line = ReportLine.take()
    # SIGINT is for the supervisor, which then asks this worker to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        # A worker reads the environment itself, so that no secret goes through the pipe or onto a command line.
        settings = worker_settings(load(environ), number, count)
        line.end_with_it(settings.pinstream.shutdown_grace + MARGIN)
        logs.configure(
            log_format=settings.pinstream.log_format,
            level=settings.pinstream.log_level,
            always={"worker": number},
        )
        # Metrics are exported by the supervisor, for all workers.
        traces, _ = environment.start(environ, settings, "TRACES")
        run_on_loop(_run(settings, traces, line, fail_fast=fail_fast))
        line.end()
    except PinstreamError as error:
        # The supervisor prints the message, once for all workers.
        line.end(WorkerReport(error=str(error)))
        sys.exit(error.exit_code)
    except Exception as error:
        line.end(WorkerReport(error=f"unexpected {type(error).__name__}"))
        raise  # the traceback, with --debug, goes to this process's stderr


async def _run(settings: Settings, traces: Tracing, line: ReportLine, *, fail_fast: bool) -> None:
    async with member(settings, traces, fail_fast=fail_fast) as one:
        grace = settings.pinstream.shutdown_grace
        one.end_by(Ending(one.stop, grace=grace, slack=MARGIN, is_worker=True))
        reporting = asyncio.create_task(_report_on(one, line))
        try:
            await one.serve()
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
            # The last figures are those of the orderly end.
            line.say(_report(one))


async def _report_on(one: Member, line: ReportLine) -> None:
    while True:
        line.say(_report(one))
        await asyncio.sleep(REPORT_EVERY)


def _report(one: Member) -> WorkerReport:
    try:
        statistics = one.statistics()
    except Exception as error:  # the ledger does not add up; the health of a single process says the same
        return WorkerReport(unhealthy=f"the figures cannot be read ({type(error).__name__})")
    return WorkerReport(statistics, one.unhealthy(statistics))
