"""The supervisor's I/O: starts the workers, reads their reports, performs `Supervision`'s commands, serves figures."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from consumer.app import building
from consumer.app.run import log_starting, process, run_service, web_server
from consumer.app.signals import on_stop_signal
from consumer.engine.messages import Report
from consumer.engine.statistics import Statistics
from consumer.errors import (
    DestinationRefused,
    InvariantViolation,
    PinstreamError,
    SettingsError,
    WorkersFailed,
)
from consumer.settings import Settings, load
from consumer.web.status import ledger
from consumer.workers import showing
from consumer.workers import supervision as s
from consumer.workers.line import WorkerReport, hear
from consumer.workers.merging import Merged
from consumer.workers.shares import check_divisible, worker_count

_BUFFER = 1024 * 1024
_ERRORS: Mapping[int, type[PinstreamError]] = {s.SETTINGS: SettingsError, s.REFUSED: DestinationRefused}


def run_workers(environ: Mapping[str, str], workers: str, again: Sequence[str]) -> None:
    """Run `workers` workers (a number, or ``auto``) until SIGTERM or SIGINT.

    `again` is the command of this program; the arguments of a worker are added to it. Raises `PinstreamError`.
    """
    settings = load(environ)
    count = worker_count(workers, settings)
    check_divisible(settings, count)
    if count == 1:
        run_service(environ)
        return
    building.set_up_logs(settings)
    # Find mistakes in schema and mapping files before any worker starts.
    building.mapping(settings, building.reader_schema(settings, building.local_schemas(settings)))
    asyncio.run(Supervisor(settings, count, [*again, "run"]).run())


class Supervisor:
    """Runs all workers, from the first start to the last end. `command` with ``--worker I/N`` added starts one."""

    def __init__(self, settings: Settings, count: int, command: Sequence[str]) -> None:
        self._settings = settings
        self._count = count
        self._command = command
        self._supervision = s.Supervision(
            count,
            grace=settings.pinstream.shutdown_grace,
            # Jitter keeps workers and the supervisors of other machines from restarting in step.
            jitter=random.SystemRandom().random,
        )
        self._merged = Merged()
        self._lives: dict[int, _Life] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._keys = showing.SharedKeyStore()
        self._started = time.time()
        self._closing = False
        self._end: asyncio.Future[s.Finish] | None = None
        self._performers: dict[type, Callable[[Any], None]] = {
            s.StartWorker: self._start,
            s.StopWorker: lambda command: self._lives[command.worker].stop(),
            s.KillWorker: lambda command: self._lives[command.worker].kill(),
            s.Finish: self._finish,
            Report: building.log_report,
        }

    async def run(self) -> None:
        """Run until all workers have ended for good. Raises the reason unless a signal asked for the end."""
        self._end = asyncio.get_running_loop().create_future()
        on_stop_signal(lambda: self._feed(s.StopSignalled()), self._kill_all)
        server = web_server(
            self._settings,
            self.statistics,
            self._info,
            keys=lambda: self._key_store()["keys"],
            others=lambda: showing.why_workers_unhealthy(self._seen()),
            more_metrics=showing.WorkersCollector(self._seen),
        )
        try:
            log_starting(self._settings, None if server is None else await server.start())
            structlog.get_logger().info("supervising", workers=self._count)
            self._feed(s.Begun())
            end = await self._end
        finally:
            self._closing = True
            self._kill_all()
            if self._timer is not None:
                self._timer.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if server is not None:
                await server.stop()
        structlog.get_logger().info("stopped", **ledger(self.statistics().totals))
        if end.code:
            raise _ERRORS.get(end.code, WorkersFailed)(end.reason or "")

    def statistics(self) -> Statistics:
        """Return the figures of all workers. Raises `InvariantViolation` if a live worker cannot report its own."""
        for number, life in self._lives.items():
            if life.said is not None and life.said.statistics is None:
                raise InvariantViolation(f"worker {number} cannot report its figures")
        return self._merged.statistics(stopping=self._supervision.stopping)

    # -- feed, perform, re-arm

    def _feed(self, happened: s.Input) -> None:
        if self._closing:
            return
        now = asyncio.get_running_loop().time()
        try:
            for command in self._supervision.handle(happened, now):
                self._performers[type(command)](command)
        except Exception as error:  # a bug: end rather than leave workers unsupervised
            if self._end is not None and not self._end.done():
                self._end.set_exception(error)
        if self._timer is not None:
            self._timer.cancel()
        deadline = self._supervision.next_deadline()
        self._timer = (
            None
            if deadline is None
            else asyncio.get_running_loop().call_at(deadline, self._feed, s.TimePassed())
        )

    def _start(self, command: s.StartWorker) -> None:
        life = self._lives[command.worker] = _Life()
        arguments = [*self._command, "--worker", f"{command.worker}/{self._count}"]
        task = asyncio.create_task(self._watch(command.worker, life, arguments))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, number: int, life: _Life, arguments: Sequence[str]) -> None:
        """Run one process of a worker and report its end, however it ends."""
        try:
            code, reason = await life.live(arguments, lambda said: self._hear(number, life, said))
        except Exception as error:  # the process could not be started, or sent an invalid report
            code, reason = 1, f"worker {number} cannot be run ({error})"
        del self._lives[number]
        self._merged.gone(number)
        if life.said is not None and life.said.key_store is not None:
            self._keys.gone(life.said.key_store)
        self._feed(s.Ended(number, code, reason))

    def _hear(self, number: int, life: _Life, said: WorkerReport) -> None:
        if said.error is not None:
            life.error = said.error
            return
        if said.joined and not (life.said is not None and life.said.joined):
            structlog.get_logger().info("worker_joined", worker=number, pid=life.pid)
            self._feed(s.Joined(number))
        life.said, life.heard_at = said, time.monotonic()
        if said.statistics is not None and self._merged.take(number, said.statistics):
            self._feed(s.Progressed(number))

    def _finish(self, command: s.Finish) -> None:
        if self._end is not None and not self._end.done():
            self._end.set_result(command)

    def _kill_all(self) -> None:
        for life in self._lives.values():
            life.kill()

    # -- what is shown

    def _seen(self) -> Sequence[showing.WorkerView]:
        return [self._look_at(books) for books in self._supervision.workers]

    def _look_at(self, books: s.WorkerRecord) -> showing.WorkerView:
        life = self._lives.get(books.number)
        if life is None:
            return showing.WorkerView(books, None, None, None, None)
        since = life.began_at if life.heard_at is None else life.heard_at
        return showing.WorkerView(
            books,
            life.pid,
            time.monotonic() - since,
            None if life.said is None else life.said.unhealthy,
            self._merged.of(books.number),
        )

    def _key_store(self) -> dict[str, Any]:
        said = (life.said.key_store for life in self._lives.values() if life.said is not None)
        return self._keys.of_all([one for one in said if one is not None])

    def _info(self) -> dict[str, Any]:
        return {
            "process": process(self._settings, self._started),
            "key_store": self._key_store(),
            "workers": showing.worker_rows(self._seen()),
        }


class _Life:
    """One process of a worker, from its start to its end."""

    def __init__(self) -> None:
        self.said: WorkerReport | None = None
        """The latest report."""
        self.began_at = time.monotonic()
        self.heard_at: float | None = None
        self.error: str | None = None
        """The error in its last report."""
        self._process: asyncio.subprocess.Process | None = None
        self._wanted: Callable[[asyncio.subprocess.Process], None] | None = None
        """A stop or kill that was asked for before the process existed."""

    @property
    def pid(self) -> int | None:
        """None: there is no process yet."""
        return None if self._process is None else self._process.pid

    async def live(
        self, arguments: Sequence[str], hears: Callable[[WorkerReport], None]
    ) -> tuple[int, str | None]:
        """Run the process to its end. Return its exit code, and the error that it reported."""
        # In a session of its own, so that Ctrl-C in the terminal reaches only the supervisor.
        process = self._process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=_BUFFER,
        )
        if self._wanted is not None:
            self._wanted(process)
        try:
            while (said := await hear(process.stdout)) is not None:
                hears(said)
        except Exception:  # without reports it cannot be supervised: end it
            self.kill()
            await process.wait()
            raise
        return await process.wait(), self.error

    def stop(self) -> None:
        """Ask it to stop (SIGTERM)."""
        self._do(lambda process: process.terminate())

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self._do(lambda process: process.kill())

    def _do(self, what: Callable[[asyncio.subprocess.Process], None]) -> None:
        if self._process is None:
            self._wanted = what
            return
        with contextlib.suppress(ProcessLookupError):
            what(self._process)


def this_program() -> list[str]:
    """Return the command of this process without its arguments: interpreter, its options, entry point."""
    own = len(sys.orig_argv) - len(sys.argv[1:])
    return [sys.executable or os.fsdecode(sys.orig_argv[0]), *sys.orig_argv[1:own]]
