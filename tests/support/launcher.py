"""Starts ``python -m MODULE ARGUMENTS`` without the imports of each start, which are 0.4 s of CPU a thousand times.

Theory of operation. A *launcher*, one for each test process, has imported the product and waits. For each request it
forks. The child takes the request's environment and open files, leaves the loop, and runs the module as the interpreter
would, to the interpreter's own end: a process like any other, with a pid, signals and an exit code. It becomes a child
of the test process, which takes orphans while it starts one (PR_SET_CHILD_SUBREAPER): the launcher forks twice.

What is different: the modules are imported already, all of them. What depends on how the interpreter starts must start
by itself (`can_launch`); tests of starts, imports and memory say ``fresh=True``.
"""

from __future__ import annotations

import array
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
_PR_SET_CHILD_SUBREAPER = 36
_MAX_REQUEST = 1 << 18
_STREAMS = 3
_LOCK = threading.Lock()


class Request(NamedTuple):
    """What to run. Its standard streams come beside it."""

    module: str
    arguments: Sequence[str]
    env: Mapping[str, str]


class Launched:
    """A process that was launched; as `subprocess.Popen`, as far as tests use that."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end = os.pidfd_open(pid)

    def poll(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._ended(0)

    def wait(self, timeout: float) -> int:
        """Wait until it ends; return its exit code."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            signal.pidfd_send_signal(self._end, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _ended(self, within: float) -> int | None:
        if self.returncode is None and select.select([self._end], [], [], within)[0]:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._end)
        return self.returncode


def can_launch(env: Mapping[str, str]) -> bool:
    """Whether a process with this environment does the same as one that starts by itself: nothing in it is for the
    interpreter or for the dynamic linker."""
    return sys.platform == "linux" and not any(name.startswith(("PYTHON", "LD_", "MALLOC_")) for name in env)


def launch(module: str, arguments: Sequence[str], env: Mapping[str, str], streams: Sequence[int]) -> Launched:
    """Run ``python -m MODULE ARGUMENTS`` in `ROOT`. `streams`: the files that become its standard streams."""
    text = json.dumps(Request(module, list(arguments), dict(env))).encode()
    assert len(text) < _MAX_REQUEST
    with _LOCK:
        server = _server()
        _take_orphans(True)
        try:
            rights = array.array("i", streams)
            server.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            pid = server.recv(64)
            assert pid, "the launcher has ended: what it wrote to stderr says why"
            return Launched(int(pid))
        finally:
            _take_orphans(False)


_started: list[socket.socket] = []


def _server() -> socket.socket:
    """The connection to this process's launcher."""
    if not _started:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for one in (ours, theirs):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _MAX_REQUEST)
        with theirs:
            environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
            subprocess.Popen(  # which ends when our end of the connection does
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip
        _started.append(ours)
    return _started[0]


def _take_orphans(whether: bool) -> None:
    """Whether orphans below this process become its children."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(whether), 0, 0, 0)


# ------------------------------------------------------------------------------------------------- the launcher


def _serve(connection: socket.socket) -> Request:
    """Answer requests by forks; returns only in a child, with what it is to run."""
    while True:
        text, rights, _, _ = socket.recv_fds(connection, _MAX_REQUEST, _STREAMS)
        if not text:
            os._exit(0)  # the test process has ended
        reported, report = os.pipe()
        between = os.fork()
        if not between and not (child := os.fork()):
            for number, stream in enumerate(rights):
                os.dup2(stream, number)
            for one in (reported, report, connection.detach(), *rights):
                os.close(one)
            return Request(*json.loads(text))
        if not between:
            os.write(report, b"%d" % child)
            os._exit(0)
        os.waitpid(between, 0)  # only now the child is an orphan
        connection.send(os.read(reported, 64))
        for one in (reported, report, *rights):
            os.close(one)


def _run(request: Request) -> None:
    """Run a module as `python -m` does."""
    os.environ.clear()
    os.environ.update(request.env)
    time.tzset()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv[1:] = request.arguments
    # A supervisor starts its workers as it was started itself.
    sys.orig_argv[1:] = ["-m", request.module, *request.arguments]
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)


def _import_all(package: Any) -> None:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)


if __name__ == "__main__":
    _import_all(importlib.import_module("consumer"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    gc.collect()
    gc.freeze()
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
