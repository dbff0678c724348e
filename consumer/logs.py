"""The log: structured lines on stderr, as JSON for machines or in colour for people.

Code that logs calls ``structlog.get_logger()`` with a constant event name and fields. This module decides how the lines
are filtered and written. Lines of the standard library's `logging` (aiohttp, confluent-kafka) go through it too::

    event -> level, logger, time -> RepeatLimiter -> exception text -> redact -> JSON or console -> Outlet -> stderr

`Outlet` has the one thread that writes. A disk that is full, a reader that has ended or stands still must not hold up
the delivery: who logs never waits. Lines that cannot be written are dropped and counted.

`RepeatLimiter` prevents an outage from writing the same line ten thousand times a second: it passes a limited number of
lines of one event name and level per interval, and the next line that passes has the number of dropped lines. Messages
that are repeated as long as a problem lasts pass once a minute each. `redact` is the second defence against
secrets: code must not log one, and if it does, the value is masked by its field's name or by its form. Personal data is
the responsibility of the callers: they log codes and ids, never bodies.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import logging
import os
import re
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol

import orjson
import structlog

EventDict = MutableMapping[str, Any]

REDACTED = "[redacted]"
# Bytes of the lines that wait to be written. Further ones are dropped.
MAX_BYTES = 1024 * 1024
# Seconds that the end of the process waits for lines that are not written yet.
LAST_SECONDS = 1.0
# Seconds until a descriptor that takes nothing now (EAGAIN) is tried again.
_WRITE_AGAIN = 0.05

# Events that the console shows with one field per line, because people read them in full.
_ONE_FIELD_PER_LINE = frozenset({"starting"})
# Events that are repeated until the cause is gone. Lines that differ only in numbers count as repeats.
_REPEATED = frozenset(
    {"dead_letters_not_stored", "kafka_trouble", "key_store_trouble", "receipts_not_stored"}
)
_EVENT_WIDTH = 22
# What structlog calls with finished lines.
_METHODS = ("debug", "info", "warning", "error", "critical")

_DIGITS = re.compile(r"\d+")
_SECRET_FIELD = re.compile(
    r"(?:^|[_.\-])(?:token|secret|password|passwd|passphrase|authorization|credentials?|cookie|api_?key|private_?key"
    r"|user_?info|sasl_?jaas_?config)s?$",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"(?P<kept>\b(?:bearer|basic)\s+)[\w.~+/=\-]{8,}"  # an Authorization header
    r"|\bpin[acr]_[\w.\-]{8,}"  # Pinterest's access, client and refresh tokens
    r"|(?P<scheme>\b[a-z][a-z0-9+.\-]*://)[^\s/@]*:[^\s/@]+(?=@)",  # user and password in a URL
    re.IGNORECASE,
)


@dataclass(eq=False)
class RepeatLimiter:
    """A structlog processor that passes `burst` lines of one event and level per `interval` seconds.

    Of the events in `_REPEATED`, it passes each distinct message once per `seldom` seconds. The first line
    that passes afterwards has the field ``repeats_not_shown``. The limiter remembers the latest `kinds` kinds of line,
    so its memory is bounded even if an event name contains data.
    """

    burst: int = 10
    interval: float = 10.0
    seldom: float = field(default=60.0, kw_only=True)
    kinds: int = field(default=1000, kw_only=True)
    clock: Callable[[], float] = field(default=time.monotonic, kw_only=True)
    _windows: OrderedDict[tuple[str, str], _Repeats] = field(default_factory=OrderedDict, init=False)

    def __post_init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        # The process that forked may have held it. Reentrant: the garbage collector may run, and log, in between.
        self._lock = threading.RLock()

    def __call__(self, _logger: object, method: str, event: EventDict) -> EventDict:
        """Return the event with the number of dropped repeats, or raise `structlog.DropEvent` to drop it."""
        name = str(event.pop("_kind", event.get("event")))
        kind, burst, interval = (method, name), self.burst, self.interval
        if name in _REPEATED:
            text = " ".join(str(event[key]) for key in sorted(event))
            # Other ports, broker ids and offsets do not make a new message.
            kind, burst, interval = (method, _DIGITS.sub("", text)), 1, self.seldom
        with self._lock:  # clients log from their own threads
            now = self.clock()
            window = self._windows.setdefault(kind, _Repeats(now))
            self._windows.move_to_end(kind)
            if len(self._windows) > self.kinds:
                self._windows.popitem(last=False)
            if now - window.since >= interval:
                window.since, window.passed = now, 0
            if window.passed >= burst:
                window.dropped += 1
                raise structlog.DropEvent
            window.passed += 1
            not_shown, window.dropped = window.dropped, 0
        if not_shown:
            event["repeats_not_shown"] = not_shown
        return event


class LogStream(Protocol):
    """What lines of the log are written to, if not to stderr's descriptor: an open text file, as far as it is used."""

    def write(self, text: str, /) -> int:
        """Write lines."""

    def flush(self) -> None:
        """Write what is buffered."""

    def isatty(self) -> bool:
        """Return True if a person reads it."""


class Outlet:
    """Writes lines to a file descriptor, in order, from a daemon thread. `put` never waits for it.

    At most `max_bytes` of lines wait. A child of a fork begins without lines, and with a thread of its own.
    """

    def __init__(self, descriptor: int, max_bytes: int = MAX_BYTES) -> None:
        self.descriptor = descriptor
        self._max_bytes = max_bytes
        self.dropped = 0
        """How many lines could not be written."""
        self._reported = 0
        # Until when the end of the process waits (monotonic). None: it has not begun.
        self._ends: float | None = None
        # Whether the last line was written in part.
        self._torn = False
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        # Reentrant: the garbage collector may run, and log, in between.
        self._changed = threading.Condition(threading.RLock())
        self._lines: deque[bytes] = deque()
        # Of these lines, and of the one that is being written.
        self._bytes = 0
        self._thread: threading.Thread | None = None

    def put(self, line: str, *, last: bool = False) -> None:
        """Queue a line. `last`: also if there is no room, because no other one follows."""
        data = f"{line}\n".encode("utf-8", "backslashreplace")
        with self._changed:
            # A line that is larger than the whole queue is written, too, if it is alone.
            if self._bytes and self._bytes + len(data) > self._max_bytes and not last:
                self.dropped += 1
                return
            if self._thread is None:
                # Made for the first line, so after any fork of a service.
                thread = threading.Thread(target=self._work, name="log", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the machine, or the interpreter at its end, has no thread left for it
                    self.dropped += not self._write(data)
                    return
                self._thread = thread
            self._lines.append(data)
            self._bytes += len(data)
            self._changed.notify_all()

    def flush(self, within: float | None = None) -> None:
        """At the end of the process, wait until all lines are written or dropped: for `within` seconds at most, or, all
        calls together, for `LAST_SECONDS`."""
        if within is None:
            self._ends = self._ends or time.monotonic() + LAST_SECONDS
            within = max(0.0, self._ends - time.monotonic())
        with self._changed:
            self._changed.wait_for(lambda: not self._bytes, within)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
            # Without the lock: this may take indefinitely.
            written = self._write(line)
            with self._changed:
                self.dropped += not written
                # Once there is room again, behind the lines that had still found some.
                reports = written and not self._lines and self.dropped > self._reported
                if reports:
                    self._reported = self.dropped
            if reports:
                structlog.get_logger().warning("log_lines_dropped", lines=self._reported)
            with self._changed:
                self._bytes -= len(line)
                self._changed.notify_all()

    def _write(self, line: bytes) -> bool:
        """Write a line, however long that takes. Return False if it cannot be written."""
        # Not through a stream of Python: at exit, the interpreter needs the lock of that. One call for each line keeps
        # the lines of several processes apart. A line that broke off must not run into this one.
        left = memoryview(b"\n" + line if self._torn else line)
        whole = len(left)
        while left:
            try:
                left = left[os.write(self.descriptor, left) :]
            except BlockingIOError:
                time.sleep(_WRITE_AGAIN)
            except OSError:  # no room, no reader, a broken disk, …
                self._torn = self._torn or len(left) < whole
                return False
        self._torn = False
        return True


_outlet: Outlet | None = None
"""Made once for a process, when the log is first set up."""


def lines_dropped() -> int:
    """Return how many lines of the log could not be written."""
    return 0 if _outlet is None else _outlet.dropped


def end_with(line: str, within: float | None = None) -> None:
    """Write the last line of the process to stderr, behind those of the log. Waits as `Outlet.flush` does."""
    outlet = _outlet_of_stderr()
    if outlet is not None:
        outlet.put(line, last=True)
        outlet.flush(within)
        return
    # Without a log. Not through the stream, if it has a file: for what a stream cannot write, the interpreter ends
    # with 120.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        try:
            direct = Outlet(sys.stderr.fileno())
        except io.UnsupportedOperation:
            _put_into(sys.stderr, line)
        else:
            direct._write(f"{line}\n".encode("utf-8", "backslashreplace"))


def _outlet_of_stderr() -> Outlet | None:
    """Return the outlet if it is that of the present stderr, which may be replaced by something that is no file."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        if _outlet is not None and _outlet.descriptor == sys.stderr.fileno():
            return _outlet
    return None


def _put_into(stream: LogStream, line: str) -> None:
    stream.write(f"{line}\n")
    stream.flush()


@dataclass(slots=True)
class _Repeats:
    """Counts of one kind of line since the begin of its interval."""

    since: float
    passed: int = 0
    dropped: int = 0


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Mask values that are secrets by their field's name (``access_token``) or form (``Bearer …``)."""
    for key, value in event.items():
        event[key] = _masked(key, value)
    return event


class _Forward(logging.Handler):
    """Passes the standard library's records to structlog, so that all lines have one format and one way to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        # structlog has no levels between the standard ones.
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        try:
            text = record.getMessage()
        except Exception:  # wrong arguments must not break the code that logs (logging's own rule)
            text = str(record.msg)
        # The unformatted message identifies the kind of line; formatted, each line would be a kind of its own.
        structlog.get_logger().log(
            level, "library", logger=record.name, text=text, exc_info=record.exc_info, _kind=record.msg
        )


def _put_of(stream: LogStream | None) -> Callable[[str], object]:
    """Return the function that writes a line to `stream`, or to stderr."""
    global _outlet
    if stream is None and _outlet is None:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # stderr is closed, or no file
            _outlet = Outlet(sys.stderr.fileno())
            atexit.register(_outlet.flush)
            # What Python itself would print to stderr, from any thread.
            logging.captureWarnings(True)
            threading.excepthook = _log_end_of_thread
            sys.unraisablehook = _log_unraisable
    outlet = _outlet_of_stderr() if stream is None else None
    if outlet is not None:
        return outlet.put
    # stderr may be closed (`2>&-`): Python's is None then.
    out = stream or sys.stderr
    return (lambda _: None) if out is None else partial(_put_into, out)


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is None or isinstance(ended.exc_value, SystemExit):
        return
    python, name = logging.getLogger("python"), "?" if ended.thread is None else ended.thread.name
    # As at the end of the process: the trace, with the error's text, only where a bug is looked for.
    place = traceback.extract_tb(ended.exc_traceback)[-1]
    where = f"{os.path.basename(place.filename)}:{place.lineno}"
    trace = ended.exc_value if python.isEnabledFor(logging.DEBUG) else None
    python.error("%s ended the thread %s at %s", type(ended.exc_value).__name__, name, where, exc_info=trace)


def _log_unraisable(what: sys.UnraisableHookArgs) -> None:
    logging.getLogger("python").error("an error could not be raised", exc_info=what.exc_value)


def configure(
    *,
    log_format: str | None = None,
    level: str = "info",
    stream: LogStream | None = None,
    always: Mapping[str, object] | None = None,
) -> None:
    """Set up structlog and `logging` for this process; may be called again.

    `log_format` is ``json`` or ``console``; None means ``console`` on a terminal, else ``json``. `level` is
    ``debug``, ``info``, ``warning`` or ``error``; lines of libraries pass from ``warning`` on, unless it is ``debug``.
    `stream` is stderr by default. `always`: fields that are added to every line, from any thread.
    """
    put, out = _put_of(stream), stream or sys.stderr
    colors = out is not None and out.isatty()
    threshold = logging.getLevelNamesMapping()[level.upper()]
    console = colors if log_format is None else log_format == "console"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            lambda _logger, _method, event: {**(always or {}), **event},
            structlog.processors.add_log_level,
            RepeatLimiter(),
            # A person needs neither milliseconds nor the T.
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%SZ" if console else "iso", utc=True),
            # Before `redact`, and never with local variables: those may hold whole events.
            structlog.processors.format_exc_info,
            redact,
            _console(colors=colors) if console else _json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=lambda *_: SimpleNamespace(**dict.fromkeys(_METHODS, put)),
        # A logger that was used before, in a test or by a worker's parent, must follow this configuration.
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    # This function may have run before.
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _Forward)]
    root.addHandler(_Forward())
    root.setLevel(threshold if threshold == logging.DEBUG else max(threshold, logging.WARNING))


def mute(name: str) -> None:
    """Drop all lines of the standard library's logger `name` from now on."""
    logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _masked(key: str, value: object) -> object:
    """Return `value` with secrets masked, also inside dictionaries and lists."""
    # The value of such a field may have any type.
    if _SECRET_FIELD.search(key):
        return REDACTED
    if isinstance(value, str):
        return _SECRET_TEXT.sub(lambda match: f"{match['kept'] or match['scheme'] or ''}{REDACTED}", value)
    if isinstance(value, Mapping):
        return {inner: _masked(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", item) for item in value]
    return value


def _json(_logger: object, _method: str, event: EventDict) -> str:
    """Return one line of JSON that begins with time, level and event. Never raises, with any values."""
    ordered = {key: event.pop(key, None) for key in ("timestamp", "level", "event")} | dict(event)
    try:
        # A line must not be lost because of its values.
        return orjson.dumps(ordered, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError):  # a number or text that orjson does not support
        return json.dumps(ordered, default=str, skipkeys=True)


def _console(*, colors: bool) -> Callable[[object, str, EventDict], str]:
    """Render lines for people: fields in the caller's order, without None values."""
    line = structlog.dev.ConsoleRenderer(
        _EVENT_WIDTH, colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )

    def render(logger: object, method: str, event: EventDict) -> str:
        shown = {name: value for name, value in event.items() if value is not None}
        if shown["event"] not in _ONE_FIELD_PER_LINE:
            return line(logger, method, shown)
        head = {name: shown.pop(name) for name in ("timestamp", "level", "event")}
        lines = [str(line(logger, method, head)).rstrip()]
        for name, value in shown.items():
            words = ("no", "yes")[value] if isinstance(value, bool) else value
            lines.append(f"    {name.replace('_', ' '):<12} {words}")
        return "\n".join(lines)

    return render
