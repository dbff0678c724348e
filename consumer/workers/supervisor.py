"""The supervisor's I/O: starts the workers, reads their reports, performs `Supervision`'s commands, serves figures."""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, assert_never

import structlog

from consumer import logs
from consumer.adapters.thread import run_on_loop
from consumer.app import building
from consumer.app.ending import Ending, doing
from consumer.app.run import log_starting, process, run_service, web_server
from consumer.app.telemetry import MetricsExport, environment
from consumer.engine.figures.statistics import Statistics
from consumer.engine.messages import Report
from consumer.errors import (
    DestinationRefused,
    InvariantViolation,
    PinstreamError,
    SettingsError,
    WorkersFailed,
)
from consumer.settings import Settings, load
from consumer.web.health import why_unhealthy
from consumer.web.metrics import FiguresCollector
from consumer.web.status import document_of
from consumer.workers import showing
from consumer.workers import supervision as s
from consumer.workers.line import WorkerProcess, WorkerReport
from consumer.workers.merging import Merged
from consumer.workers.shares import check_divisible, worker_count

_ERRORS: Mapping[int, type[PinstreamError]] = {s.SETTINGS: SettingsError, s.REFUSED: DestinationRefused}


def run_workers(
    environ: Mapping[str, str], workers: str, again: Sequence[str], *, fail_fast: bool = False
) -> None:
    """Run `workers` workers (a number, or ``auto``) until SIGTERM or SIGINT. `fail_fast`: see `run_service`.

    `again` is the command of this program; the arguments of a worker are added to it. Raises `PinstreamError`.
    """
    settings = load(environ)
    count = worker_count(workers, settings)
    check_divisible(settings, count)
    if count == 1:
        run_service(environ, fail_fast=fail_fast)
        return
    building.set_up_logs(settings)
    building.require_limits(settings)
    # Find mistakes in schema and mapping files before any worker starts.
    building.sections(settings)
    _, metrics = environment.start(environ, settings, "METRICS")
    options = ["--fail-fast"] if fail_fast else []
    run_on_loop(Supervisor(settings, count, [*again, "run", *options], metrics).run())


class Supervisor:
    """Runs all workers, from the first start to the last end. `command` with ``--worker I/N`` added starts one."""

    def __init__(
        self, settings: Settings, count: int, command: Sequence[str], metrics: MetricsExport
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._count = count
        self._command = command
        self._supervision = s.Supervision(
            count,
            grace=settings.pinstream.shutdown_grace,
            # Jitter keeps workers and the supervisors of other machines from restarting in step.
            jitter=random.SystemRandom().random,
        )
        self._merged = Merged()
        self._running: dict[int, WorkerProcess] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._started = time.time()
        self._closing = False
        self._end: asyncio.Future[s.Finish]

    async def run(self) -> None:
        """Run until all workers have ended for good. Raises the reason unless a signal asked for the end."""
        self._end = asyncio.get_running_loop().create_future()
        # Its workers end first: within `MARGIN` seconds after the grace, or with this process.
        ending = Ending(
            partial(self._feed, self._supervision.stop),
            self._kill_all,
            grace=self._settings.pinstream.shutdown_grace,
        )
        of_workers = FiguresCollector(showing.WorkerFigures, self._seen)
        server = web_server(
            self._settings,
            self.statistics,
            self._info,
            unhealthy=self._why_unhealthy,
            more_metrics=of_workers,
        )
        figures = FiguresCollector(Statistics, lambda: [self.statistics()])
        try:
            # Before the first worker, so that an address in use is reported at once, and by one process.
            log_starting(self._settings, None if server is None else await server.start())
            structlog.get_logger().info("supervising", workers=self._count)
            async with self._metrics.exporting([figures, of_workers]):
                self._feed()
                end = await self._end
        finally:
            self._closing = True
            ending.begin()
            # In an orderly end there are none left.
            self._kill_all()
            if self._timer is not None:
                self._timer.cancel()
            with doing("waiting for the workers"):
                await asyncio.gather(*self._tasks, return_exceptions=True)
            if server is not None:
                with doing("closing the page"):
                    await server.stop()
        structlog.get_logger().info("stopped", **document_of(self.statistics().totals))
        if end.code:
            raise _ERRORS.get(end.code, WorkersFailed)(end.reason or "")

    def statistics(self) -> Statistics:
        """Return the figures of all workers. Raises `InvariantViolation` if a live worker cannot report its own."""
        for number, child in self._running.items():
            if child.said is not None and child.said.statistics is None:
                raise InvariantViolation(f"worker {number} cannot report its figures")
        self._notice_silence()
        merged = self._merged.statistics(stopping=self._supervision.stopping)
        # The supervisor logs, too.
        return replace(merged, log_lines_dropped=merged.log_lines_dropped + logs.lines_dropped())

    def _notice_silence(self) -> None:
        now, running = time.monotonic(), self._running.items()
        self._merged.stand_still([number for number, child in running if showing.is_silent(child, now)])

    # -- feed, perform, re-arm

    def _feed(self, happened: Callable[[float], None] = lambda _: None) -> None:
        """Tell the supervision what `happened`, or that time has passed, and perform its commands."""
        # While the supervisor closes, ends of workers still arrive, and must start no new ones.
        if self._closing:
            return
        loop = asyncio.get_running_loop()
        try:
            happened(loop.time())
            for command in self._supervision.commands(loop.time()):
                self._perform(command)
        except Exception as error:  # a bug: end rather than leave workers unsupervised
            if not self._end.done():
                self._end.set_exception(error)
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._supervision.next_deadline()
        if deadline < math.inf:
            self._timer = loop.call_at(deadline, self._feed)

    def _perform(self, command: s.SupervisorCommand) -> None:
        match command:
            case s.StartWorker(number):
                child = self._running[number] = WorkerProcess()
                task = asyncio.create_task(self._watch(number, child))
                self._tasks.add(task)  # the loop itself keeps only a weak reference
                task.add_done_callback(self._tasks.discard)
            case s.SignalWorker(number, signal_number):
                self._running[number].send(signal_number)
            case s.Finish():
                if not self._end.done():
                    self._end.set_result(command)
            case Report():
                building.log_report(command)
            case _:
                assert_never(command)

    async def _watch(self, number: int, child: WorkerProcess) -> None:
        """Run one process of a worker and report its end, however it ends."""
        arguments = [*self._command, "--worker", f"{number}/{self._count}"]
        try:
            code = await child.live(arguments, partial(self._hear, number, child))
        except Exception as error:  # the process could not be started, or sent an invalid report
            code, child.error = 1, f"worker {number} cannot be run ({error})"
        del self._running[number]
        # Its counts stay.
        self._merged.gone(number)
        self._feed(partial(self._supervision.ended, number, code, child.error))

    def _hear(self, number: int, child: WorkerProcess, said: WorkerReport) -> None:
        if said.error is not None:
            child.error = said.error
            return
        child.said, child.heard_at = said, time.monotonic()
        if said.statistics is None:
            return
        is_starting = self._supervision.workers[number - 1].state is s.WorkerState.STARTING
        if is_starting and said.statistics.starting is None:
            structlog.get_logger().info("worker_joined", worker=number, pid=child.pid)
            self._feed(partial(self._supervision.joined, number))
        if self._merged.take(number, said.statistics):
            self._supervision.progressed()

    def _kill_all(self) -> None:
        for child in list(self._running.values()):  # a copy: the hard end calls this from its thread
            child.send(signal.SIGKILL)

    # -- what is shown

    def _seen(self) -> Sequence[showing.WorkerFigures]:
        self._notice_silence()
        now = time.monotonic()
        return [
            showing.figures(
                record,
                self._running.get(record.number),
                now,
                len(self._merged.partitions_of(record.number)),
            )
            for record in self._supervision.workers
        ]

    def _why_unhealthy(self, statistics: Statistics) -> str | None:
        # The merged ledger first: that it does not add up is worse than a worker that hangs.
        return why_unhealthy(statistics, time.monotonic()) or showing.why_workers_unhealthy(self._seen())

    def _info(self) -> dict[str, Any]:
        return {
            "process": process(self._settings, self._started),
            "workers": [document_of(one) for one in self._seen()],
        }


def this_program() -> list[str]:
    """Return the command of this process without its arguments: interpreter, its options, entry point."""
    own = len(sys.orig_argv) - len(sys.argv[1:])
    return [sys.executable or os.fsdecode(sys.orig_argv[0]), *sys.orig_argv[1:own]]
