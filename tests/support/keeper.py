"""One server for all processes of a test run (pytest-xdist). The first one to ask starts, under a file lock, a *keeper*
process (``python -m MODULE --parent PID --state FILE``). The keeper owns the server: it writes where it is into the
file, and ends it when the run's main process is gone or `stop` says so.

`OwnServer` is what such servers have in common: a process with a folder.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 120.0
_STOP_SECONDS = 25.0
ANSWER_SECONDS = 60.0
END_SECONDS = 20.0


class Unavailable(Exception):
    """A server that cannot be started here; the text says what is missing."""


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Send SIGSTOP to a child, and wait until all its threads stand still: until then one may still answer."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)


class OwnServer:
    """A server of our own. Use as a context manager, or `start` and `stop`.

    `directory` keeps its data and its output; `stop` removes it if we made it. A subclass says how it starts, by
    `_launch`, and whether it answers.
    """

    what = "a server"

    def __init__(self, directory: Path | None = None) -> None:
        self._made = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix="pinstream-server-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it; returns when it answers. Raises `Unavailable`."""
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _launch(self, command: Sequence[str]) -> None:
        """Run this command, and wait until the server answers."""
        output = self.directory / "output.log"
        with output.open("ab") as sink:
            process = self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,  # Ctrl-C at pytest must not kill it before the tests are done
            )
        deadline = time.monotonic() + ANSWER_SECONDS
        while not self._answers():
            if process.poll() is not None:
                raise Unavailable(f"{self.what} ended: {output.read_text()[-1000:]}")
            if time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                raise Unavailable(f"{self.what} did not start: {output.read_text()[-1000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Shut it down within `END_SECONDS`, or kill it; remove the files that we made."""
        self._end(signal.SIGTERM)
        if self._made:
            shutil.rmtree(self.directory, ignore_errors=True)

    def shut_down(self) -> None:
        """Shut down in order and keep the data."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        end(process, how, END_SECONDS)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def shared(directory: Path, name: str, module: str, parent: int) -> dict[str, str]:
    """Return what the keeper of this server wrote, started by the first to ask. Raises `Unavailable`.

    `directory` is common to the run's processes; the server ends when process `parent` does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    state = directory / f"{name}.json"
    with locked(directory / f"{name}.lock"):
        if not state.exists():
            _start(module, parent, state)
        found: dict[str, str] = json.loads(state.read_text())
    if "error" in found:
        raise Unavailable(found["error"])
    return found


def stop(directory: Path, name: str) -> None:
    """End the run's server, if one was started, and wait, for a bounded time, until it has ended."""
    state = directory / f"{name}.json"
    if not state.exists():
        return
    with contextlib.suppress(psutil.NoSuchProcess, KeyError, psutil.TimeoutExpired):
        keeper = psutil.Process(int(json.loads(state.read_text())["keeper"]))
        keeper.terminate()
        keeper.wait(_STOP_SECONDS)


def end(process: subprocess.Popen[bytes] | None, how: signal.Signals, seconds: float) -> None:
    """End a server, if there is one, with this signal; kill it after `seconds`."""
    if process is None:
        return
    process.send_signal(how)
    process.send_signal(signal.SIGCONT)  # a paused process takes no other signal
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(seconds)


def _start(module: str, parent: int, state: Path) -> None:
    command = [sys.executable, "-m", module, "--parent", str(parent), "--state", str(state)]
    log = state.with_suffix(".keeper.log")
    with log.open("ab") as sink:
        subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
        )
    deadline = time.monotonic() + _START_SECONDS
    while not state.exists():
        if time.monotonic() > deadline:
            raise Unavailable(f"the keeper said nothing; see {log}")
        time.sleep(0.05)


def keep(what: str, server: Callable[[], AbstractContextManager[dict[str, str]]]) -> None:
    """Be the keeper: run `server` until SIGTERM, Ctrl-C, or the end of the process that the command line names."""
    parser = argparse.ArgumentParser(description=f"Run {what} on loopback; prints where it is.")
    parser.add_argument("--parent", type=int, default=os.getppid(), help="end when this process does")
    parser.add_argument("--state", type=Path, default=None, help="file to write the addresses to")
    arguments = parser.parse_args()
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    try:
        with server() as addresses:
            print(*addresses.values(), flush=True)
            _write(arguments.state, {**addresses, "keeper": str(os.getpid())})
            while not ended and psutil.pid_exists(arguments.parent):
                time.sleep(0.2)
    except Unavailable as error:
        _write(arguments.state, {"error": str(error)})
        raise SystemExit(str(error)) from error


def _write(state: Path | None, content: dict[str, str]) -> None:
    if state is None:
        return
    draft = state.with_suffix(".draft")
    draft.write_text(json.dumps(content))
    draft.replace(state)  # whole or not at all: others wait for it to appear


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold this lock, which excludes other processes."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file unlocks it
