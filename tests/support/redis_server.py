"""A real redis-server of the tests: started on a free port of the loopback, killed, frozen, with TLS or users.

`redis-server` is Debian's package of that name. Without it the tests that need it are skipped; in CI the run fails.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import keeper
from tests.support.kafka.broker import free_ports

PROGRAM = shutil.which("redis-server") or shutil.which("valkey-server")
_START = 30.0


class RedisServer:
    """One server. It keeps nothing on disk unless `arguments` say so."""

    def __init__(
        self, directory: Path, *arguments: str, port: int | None = None, configuration: str = ""
    ) -> None:
        """`configuration`: the lines of its configuration file, which a Sentinel needs."""
        self.directory = directory
        self.port = port or free_ports(1)[0]
        self._arguments = arguments
        self._file: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)
        if configuration:
            (directory / "redis.conf").write_text(configuration)
            self._file = (str(directory / "redis.conf"),)

    @property
    def url(self) -> str:
        """For PINSTREAM_KEY_STORE."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process, while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, or start it again, and wait until it answers."""
        assert PROGRAM is not None
        canonical = ("--bind", "127.0.0.1", "--save", "", "--dir", str(self.directory), "--daemonize", "no")
        port = () if "--tls-port" in self._arguments else ("--port", str(self.port))
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, *self._file, *canonical, *port, *self._arguments], stdout=log, stderr=log
            )
        deadline = time.monotonic() + _START
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            assert self._process.poll() is None, (self.directory / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, "redis-server did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """Kill it, as the out-of-memory killer does."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Freeze it: connections stay open, and nothing is answered."""
        assert self._process is not None
        keeper.freeze(self._process)

    def thaw(self) -> None:
        """Let it continue."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def redis_server(
    directory: Path, *arguments: str, port: int | None = None, configuration: str = ""
) -> Iterator[RedisServer]:
    """A running server, which is killed at the end; skips the test if redis-server is not installed."""
    if PROGRAM is None:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("redis-server is not installed: in CI these tests must run")
        pytest.skip("needs redis-server (Debian's package redis-server)")
    server = RedisServer(directory, *arguments, port=port, configuration=configuration)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def redis_cluster(directory: Path, primaries: int, replicas: int = 0) -> Iterator[list[RedisServer]]:
    """A complete cluster, its primaries first, with `replicas` for each of them. Its nodes are killed at the end."""
    with contextlib.ExitStack() as stack:
        arguments = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "2000",
            "--repl-diskless-sync-delay",
            "0",
        )
        nodes = [
            stack.enter_context(
                redis_server(directory / f"node-{n}", *arguments, "--cluster-port", str(free_ports(1)[0]))
            )
            for n in range(primaries * (1 + replicas))
        ]
        names = [f"127.0.0.1:{node.port}" for node in nodes]
        reported = ("--cluster-replicas", str(replicas), "--cluster-yes")
        subprocess.run(
            ["redis-cli", "--cluster", "create", *names, *reported],
            check=True,
            capture_output=True,
            timeout=60,
        )
        deadline = time.monotonic() + _START
        while not all(map(_has_formed, nodes)):
            assert time.monotonic() < deadline, "the cluster did not form"
            time.sleep(0.05)
        yield nodes


def _has_formed(node: RedisServer) -> bool:
    """Whether this node sees the whole cluster and has all the data that it should have."""
    asked = ["redis-cli", "-p", str(node.port)]
    state = subprocess.check_output([*asked, "cluster", "info"], timeout=10)
    reported = subprocess.check_output([*asked, "info", "replication"], timeout=10)
    return b"cluster_state:ok" in state and (
        b"role:master" in reported or b"master_link_status:up" in reported
    )
