"""What the key store tests share: keys by number, members of real servers, stores in child processes, sizes on disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import redis as client

from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.shared.address import parse_address
from consumer.adapters.key_store.shared.store import RedisKeyStore
from consumer.errors import KeyStoreError
from tests.support.redis_server import RedisServer

REPOSITORY = Path(__file__).parents[3]
HOUR = 3600.0
NOON = 1_800_000_000.0
MIB = 1024 * 1024
WINDOW = Window.of(3600.0)
RIGHTS = "~pinstream:* +evalsha +script|load +exists +get +set +pexpire +expire +del +hget +hgetall +hmget "
RIGHTS += "+hset +hdel +hincrby +hscan +zadd +zmscore +zscore +zrange +zrem +zremrangebyscore +zunionstore +time +info "
RIGHTS += "+client|setname"
"""The rights that the Redis user needs, as in docs/scaling.md."""


def key(number: int) -> bytes:
    """Return the key of event `number`: a hash, so that keys are spread evenly as real ones are."""
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).digest()


def keys(numbers: Iterable[int]) -> bytes:
    """Return the keys of several events as one column."""
    return b"".join(map(key, numbers))


def open_store(folder: Path, window: float = 172_800.0, max_bytes: int = 64 * MIB) -> DiskKeyStore:
    """Open the store in `folder`."""
    return DiskKeyStore(str(folder), Window.of(window), max_bytes)


def disk_usage(folder: Path) -> int:
    """Return the bytes that `folder` takes, counted like ``du``; files may vanish during the count."""
    total = 0
    for path in (folder, *folder.iterdir()):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def open_files(folder: Path, kind: str = "") -> list[str]:
    """Return the names of the files of this kind in `folder` that this process has open or mapped."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [name for name in found if name.startswith(f"{folder}/{kind}")]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds, at most a minute."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


class Child:
    """A process with a key store of its own, driven by lines of text (child.py)."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def send(self, line: str) -> None:
        """Send a command without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def receive(self) -> str:
        """Return the next line of its output, or an empty string when the process has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        """Send a command and return its answer."""
        self.send(line)
        return self.receive()

    def kill(self) -> None:
        """Kill the process by SIGKILL, as the out-of-memory killer does."""
        self.process.kill()
        self.process.wait()


@contextmanager
def child(folder: Path, window: float, max_bytes: int) -> Iterator[Child]:
    """Start a child process with the store in `folder` open; it is killed at the end."""
    command = [
        sys.executable,
        "-m",
        "tests.adapters.key_store.child",
        str(folder),
        str(window),
        str(max_bytes),
    ]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    with process:
        try:
            started = Child(process)
            assert started.receive() == "open"
            yield started
        finally:
            process.kill()


@asynccontextmanager
async def member(
    url: str, *, time_limit: float = 5.0, word: str | None = None
) -> AsyncIterator[RedisKeyStore]:
    """Yield a member with the store's address `url` and the password `word`."""
    password = None if word is None else lambda: word
    store = RedisKeyStore(parse_address(url), WINDOW, lease=30.0, password=password, time_limit=time_limit)
    try:
        yield store
    finally:
        await store.close()


LONG_AGO = NOON - 1e8
"""Years ago by a server's clock, which a test cannot set."""


class Used(NamedTuple):
    """A store in use on a real server, the server itself, and the beginning of the store's names there."""

    store: RedisKeyStore
    server: client.Redis
    names: str

    def sizes(self) -> dict[int, int]:
        """Return for each set of delivered keys its number of entries; Redis has packed all of them."""
        found = {}
        for name in self.server.scan_iter(f"{self.names}*", count=100_000):
            if self.server.type(name) == b"zset":
                assert self.server.object("encoding", name) == b"listpack"
                found[int(name.rpartition(b":")[2])] = int(self.server.zcard(name))
        return found


@asynccontextmanager
async def used(redis: RedisServer, prefix: str = "") -> AsyncIterator[Used]:
    """Yield a member that has a session; without `prefix` of a store of its own."""
    prefix = prefix or uuid4().hex
    with client.Redis(port=redis.port) as server:
        async with member(f"{redis.url}?prefix={prefix}") as store:
            await store.renew()
            yield Used(store, server, f"{prefix}:{{0}}:")


async def until_answered(ask: Callable[[], Awaitable[object]]) -> None:
    """Call `ask` until the store answers, at most 30 seconds: servers give no signal to wait for."""
    deadline = time.monotonic() + 30.0
    while True:
        try:
            await ask()
        except KeyStoreError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


def wait_for(condition: Callable[[], bool]) -> None:
    """Poll `condition` for at most 30 seconds: servers give no signal of what they do among themselves."""
    deadline = time.monotonic() + 30.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def works(store: RedisKeyStore) -> None:
    """Check that every kind of call that a member makes to a server works."""
    await store.renew()
    assert (await store.claim(keys(range(50)), NOON)).found == bytes(50)
    await store.release(keys(range(5)))
    assert await store.confirm(keys(range(5, 50)), NOON) == b"\1" * 45
    assert await store.look_up(keys(range(50)), NOON) == bytes(5) + b"\1" * 45
    await store.expire(NOON)
    assert store.statistics().keys == 45
