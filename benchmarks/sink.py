"""A sink that is not the bottleneck: says processed to every event of every batch, and counts them.

A bare asyncio protocol in a process of its own; it counts events by counting their ids in the body, so that it
costs a fraction of a microsecond an event.

`Sink(timed=True)` also tells how old each event was when its call had come: it takes the first sixteen digits of the
event's id for the microsecond in which it was produced (`benchmarks.load.produce_live` writes them; the millisecond of
it is the record's timestamp). That costs a microsecond an event, so it is for steady rates.
`Sink(holding=True)` answers nothing: so what is open at a sender stays open.
"""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import re
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from types import TracebackType
from typing import Any, Self

import psutil

_EVENT = b'{"status":"processed","error_message":null,"warning_message":null}'
_EVENT_ID = b'"event_id":'
_STAMP = re.compile(rb'"event_id": ?"(\d{16})')
_MAX_AGES = 1 << 23


@lru_cache(maxsize=4096)
def _answer(events: int) -> bytes:
    body = b'{"num_events_received":%d,"num_events_processed":%d,"events":[%s]}' % (
        events,
        events,
        b",".join([_EVENT] * events),
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


@lru_cache(maxsize=1)
def _date(moment: int) -> bytes:
    return b"Date: %b\r\n" % formatdate(moment, usegmt=True).encode()


class Calls(asyncio.Protocol):
    """One connection: reads one call after another and gives its text to `called`, which answers it or cuts the
    connection."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._need: int | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._need is None:
            self._read_head()
        if self._need is not None and self._size >= self._need:
            call = b"".join(self._parts)
            self._parts, self._size, self._need = [], 0, None
            self.called(call)

    def _read_head(self) -> None:
        joined = b"".join(self._parts)
        self._parts = [joined]
        end = joined.find(b"\r\n\r\n")
        if end < 0:
            return
        for line in joined[:end].lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                self._need = end + 4 + int(line[15:])

    def called(self, call: bytes) -> None:
        """A whole call has come, head and body."""
        raise NotImplementedError

    def reply(self, answer: bytes) -> None:
        """Send this answer, dated as every real one is: pinstream forgets no key before it knows the time."""
        if self._transport is not None:
            end = answer.index(b"\r\n") + 2
            self._transport.writelines((answer[:end], _date(int(time.time())), answer[end:]))

    def cut(self) -> None:
        """Cut the connection without an answer."""
        if self._transport is not None:
            self._transport.abort()


class _Counting(Calls):
    """Answers every call, and adds its events to the count."""

    def __init__(self, shared: _Shared) -> None:
        super().__init__()
        self._shared = shared

    def called(self, call: bytes) -> None:
        events = call.count(_EVENT_ID)
        self.reply(_answer(events))
        self._shared.add(events)


class _Timing(_Counting):
    """Also keeps how old each event was when its call had come."""

    def called(self, call: bytes) -> None:
        now = time.time()
        ages = [now - int(stamp) / 1e6 for stamp in _STAMP.findall(call)]
        self.reply(_answer(len(ages)))
        self._shared.keep_ages(ages)
        self._shared.add(len(ages))


class _Holding(Calls):
    """Counts what comes, and never answers."""

    def __init__(self, shared: _Shared) -> None:
        super().__init__()
        self._shared = shared

    def called(self, call: bytes) -> None:
        self._shared.add(call.count(_EVENT_ID))


def listen(make: Callable[[], Calls], address: Connection) -> None:
    """Serve on a free port of loopback indefinitely; calls `address` with the port."""

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        address.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


class _Shared:
    """What the sink's process writes and the benchmark reads."""

    def __init__(self, context: Any) -> None:
        self.count: Synchronized[int] = context.Value("q", 0)
        self.ages: Any = context.Array("d", _MAX_AGES, lock=False)

    def add(self, events: int) -> None:
        with self.count.get_lock():
            self.count.value += events

    def keep_ages(self, ages: list[float]) -> None:
        """Of the events that are counted next."""
        at = self.count.value
        self.ages[at : at + len(ages)] = ages[: max(0, _MAX_AGES - at)]


def _serve(make: Callable[[_Shared], Calls], shared: _Shared, address: Connection) -> None:
    listen(lambda: make(shared), address)


class Sink:
    """The sink's process: ``with Sink() as sink: sink.url, sink.count``."""

    def __init__(self, *, timed: bool = False, holding: bool = False) -> None:
        self._make = _Timing if timed else _Holding if holding else _Counting

    def __enter__(self) -> Self:
        context = mp.get_context("spawn")
        self._shared = _Shared(context)
        receive, send = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(self._make, self._shared, send), daemon=True)
        self._process.start()
        if not receive.poll(20):
            raise RuntimeError("the sink did not start")
        self.url = f"http://127.0.0.1:{receive.recv()}/v5"
        self._watched = psutil.Process(self._process.pid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join(5)

    @property
    def count(self) -> int:
        """Events that it answered as processed; for a sink that holds its answers: events that came."""
        return int(self._shared.count.value)

    @property
    def cpu(self) -> float:
        """Seconds of CPU it has taken."""
        times = self._watched.cpu_times()
        return float(times.user + times.system)

    def ages(self, first: int = 0) -> list[float]:
        """Seconds from an event's production to its receipt, in order, of the event with this number and all later
        ones."""
        return list(self._shared.ages[first : self.count])
