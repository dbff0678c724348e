"""The soak's API: fast, and at odds with its callers now and then. It remembers, by serial number, what it was sent.

Theory of operation. A process of its own, like `benchmarks.sink`. Which calls meet a fault
depends on the call's number alone, with periods that have no common divisor, so that all mixtures come up. Of every
event it is written down, in memory that the caller reads too, whether it was ever accepted or refused. Accepted counts
answers that were sent: what was recorded and then cut off is not in it, and is in the marks.
"""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import re
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from benchmarks.sink import Calls, listen

ACCEPTED, REFUSED = 1, 2
"""Bits of an event's mark."""
UNAVAILABLE, CUT_BEFORE, CUT_AFTER, ONE_REFUSED, SLOW, THROTTLED = 23, 29, 43, 31, 37, 101
"""One of this many calls meets the fault: a 503, cut before anything is recorded, cut after it, one event
refused, late, a 429."""
LATE = 0.3
"""Seconds."""
MAX_EVENTS_A_CALL = 1000

_EVENT_ID = re.compile(rb'"event_id":"soak-(\d{8})"')
_PROCESSED = b'{"status":"processed","error_message":null,"warning_message":null}'
_FAILED = b'{"status":"failed","error_message":"The soak refuses this event.","warning_message":null}'


def _http(status: bytes, body: bytes, headers: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
    return head % (status, len(body), headers) + body


def _verdicts(events: int, refused: int) -> bytes:
    """A 200 that says processed of all events but the last `refused`."""
    processed = events - refused
    entries = b",".join([_PROCESSED] * processed + [_FAILED] * refused)
    counters = b'{"num_events_received":%d,"num_events_processed":%d,"events":[%s]}'
    return _http(b"200 OK", counters % (events, processed, entries))


_BUSY = _http(b"503 Service Unavailable", b'{"code":4197,"message":"The endpoint has been ramped down."}')
_TOO_MANY = _http(
    b"429 Too Many Requests",
    b'{"code":8,"message":"This request exceeded a rate limit."}',
    b"Retry-After: 1\r\n",
)


class Books:
    """What all connections count together; `marks` holds one byte for each serial number. Only the sink writes."""

    def __init__(self, counts: Any, marks: Any) -> None:
        self.counts = counts
        self.marks = marks

    def next_call(self) -> int:
        """The number of this call, from 1."""
        self.counts[0] += 1
        return int(self.counts[0])

    def record(self, serials: Sequence[bytes], refused: int) -> None:
        """Record the verdicts on these events: all accepted but the last `refused`."""
        marks, processed = self.marks, len(serials) - refused
        for serial in serials[:processed]:
            marks[int(serial)] |= ACCEPTED
        for serial in serials[processed:]:
            marks[int(serial)] |= REFUSED

    def answered(self, events: int, refused: int) -> None:
        """Record that the answer was sent."""
        self.counts[1] += events - refused
        self.counts[2] += refused


class _Moody(Calls):
    def __init__(self, books: Books) -> None:
        super().__init__()
        self._books = books

    def called(self, call: bytes) -> None:
        number = self._books.next_call()
        if number % THROTTLED == 0:
            self.reply(_TOO_MANY)
        elif number % UNAVAILABLE == 0:
            self.reply(_BUSY)
        elif number % CUT_BEFORE == 0:
            self.cut()
        else:
            self._judge(number, _EVENT_ID.findall(call))

    def _judge(self, number: int, serials: Sequence[bytes]) -> None:
        refused = int(number % ONE_REFUSED == 0)
        if number % CUT_AFTER == 0:
            self._books.record(serials, 0)
            self.cut()
            return
        self._books.record(serials, refused)
        self._books.answered(len(serials), refused)
        answer = _verdicts(len(serials), refused)
        if number % SLOW == 0:
            asyncio.get_running_loop().call_later(LATE, self.reply, answer)
        else:
            self.reply(answer)


def _serve(counts: Any, marks: Any, address: Connection) -> None:
    books = Books(counts, marks)
    listen(lambda: _Moody(books), address)


class Sink:
    """The sink's process, for serial numbers below `events`: ``with Sink(n) as sink: sink.url, sink.accepted``."""

    def __init__(self, events: int) -> None:
        self._context = mp.get_context("spawn")
        self._counts = self._context.RawArray("q", 3)
        self._marks = self._context.RawArray("B", events)
        self.url = ""

    def __enter__(self) -> Self:
        receive, send = self._context.Pipe(duplex=False)
        arguments = (self._counts, self._marks, send)
        self._process = self._context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        if not receive.poll(30):
            raise RuntimeError("the sink did not start")
        self.url = f"http://127.0.0.1:{receive.recv()}/v5"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.join(5)

    @property
    def calls(self) -> int:
        """Calls that came, whatever their answer."""
        return int(self._counts[0])

    @property
    def accepted(self) -> int:
        """Events it answered as processed."""
        return int(self._counts[1])

    @property
    def refused(self) -> int:
        """Events it answered as failed."""
        return int(self._counts[2])

    def never_seen(self, deliverable: bytes | bytearray) -> int:
        """How many of the `deliverable` serial numbers were never accepted nor refused."""
        return sum(1 for wanted, mark in zip(deliverable, self._marks, strict=True) if wanted and not mark)

    @property
    def distinct(self) -> int:
        """How many different events it accepted."""
        return sum(1 for mark in self._marks if mark & ACCEPTED)
