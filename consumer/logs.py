"""The log: structured lines on stderr, as JSON for machines or in colour for people.

Whoever logs calls ``structlog.get_logger()`` with a constant event name and fields; this module alone says what
becomes of it. Lines of the standard library's `logging` (aiohttp, confluent-kafka) take the same way::

    event -> level, logger, time -> RepeatLimiter -> exception text -> redact -> JSON or console -> stderr

`RepeatLimiter` keeps an outage from writing the same line ten thousand times a second: of one event name and
level, so many lines pass in each interval, and the next line that passes says how many did not. Of
what a client repeats for as long as it lasts, each thing that is said passes once a minute. `redact` is the second
fence against secrets: nobody should log one, and if somebody does, it is masked by its field's name or by its looks.
Personal data is the callers' duty: they log codes and ids, never bodies.
"""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO

import orjson
import structlog

EventDict = MutableMapping[str, Any]

MASK = "[redacted]"

_TALL = frozenset({"starting"})
"""What a person reads word by word: a field a line, on the console."""
_SELDOM = frozenset({"kafka_trouble"})
"""What is said over and over until it is mended: of these, a kind is what a line says, but for the numbers in it."""
_EVENT_WIDTH = 22

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


class RepeatLimiter:
    """A structlog processor that lets `burst` lines of one event and level pass in `interval` seconds.

    Of the events in `_SELDOM`, one line passes in `seldom` seconds for each thing that is said. The first line that
    passes afterwards carries ``repeats_not_shown``. It remembers the `kinds` kinds of line
    seen last, so its memory is bounded even if an event name is made up from data.
    """

    def __init__(
        self,
        burst: int = 10,
        interval: float = 10.0,
        *,
        seldom: float = 60.0,
        kinds: int = 1000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._burst = burst
        self._interval = interval
        self._seldom = seldom
        self._kinds = kinds
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: OrderedDict[tuple[str, str], _Window] = OrderedDict()

    def __call__(self, _logger: object, method: str, event: EventDict) -> EventDict:
        """The event, with the count of its kind that were left out; `structlog.DropEvent` if it is one too many."""
        name = str(event.pop("_kind", event.get("event")))
        kind, burst, interval = (method, name), self._burst, self._interval
        if name in _SELDOM:
            kind, burst, interval = (method, _said(event)), 1, self._seldom
        with self._lock:  # clients log from threads of their own
            window = self._window(kind, interval)
            if window.passed >= burst:
                window.dropped += 1
                raise structlog.DropEvent
            window.passed += 1
            not_shown, window.dropped = window.dropped, 0
        if not_shown:
            event["repeats_not_shown"] = not_shown
        return event

    def _window(self, kind: tuple[str, str], interval: float) -> _Window:
        now = self._clock()
        window = self._windows.get(kind)
        if window is None:
            window = self._windows[kind] = _Window(now)
            if len(self._windows) > self._kinds:
                self._windows.popitem(last=False)
        elif now - window.since >= interval:
            window.since, window.passed = now, 0
        self._windows.move_to_end(kind)
        return window


class _Window:
    """What happened to one kind of line since `since`."""

    __slots__ = ("dropped", "passed", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.passed = 0
        self.dropped = 0


def _said(event: EventDict) -> str:
    """What a line says, without its numbers: ports, brokers' numbers and offsets tell no news of their own."""
    return _DIGITS.sub("", " ".join(str(event[key]) for key in sorted(event)))


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Mask what is a secret by its field's name (``access_token``) or by its looks (``Bearer …``)."""
    for key, value in event.items():
        event[key] = _masked(key, value)
    return event


class _Forward(logging.Handler):
    """Hands the standard library's records to structlog, so that there is one way to stderr and one look."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._forward(record)
        except Exception:  # a log that cannot be written must not break what it tells of (logging's own rule)
            self.handleError(record)

    @staticmethod
    def _forward(record: logging.LogRecord) -> None:
        # structlog knows no levels in between.
        level = min(max(record.levelno // 10 * 10, logging.DEBUG), logging.CRITICAL)
        # The unformatted message tells one kind of line from another; formatted, each would be its own kind.
        structlog.get_logger().log(
            level, record.getMessage(), logger=record.name, exc_info=record.exc_info, _kind=record.msg
        )


def configure(
    *,
    log_format: str | None = None,
    level: str = "info",
    stream: TextIO | None = None,
    always: Mapping[str, object] | None = None,
) -> None:
    """Set up structlog and `logging` for this process; may be called again.

    `log_format` is ``json`` or ``console``; None is ``console`` on a terminal, else ``json``. `level` is
    ``debug``, ``info``, ``warning`` or ``error``; libraries are heard from ``warning`` on, unless it is ``debug``.
    `stream` is stderr as it is now. `always`: fields of every line, from whatever thread it comes.
    """
    out = stream or sys.stderr or io.StringIO()  # stderr may be closed (`2>&-`): then nobody listens
    threshold = logging.getLevelNamesMapping()[level.upper()]
    console = out.isatty() if log_format is None else log_format == "console"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            *([_with_fields(always)] if always else []),
            structlog.processors.add_log_level,
            RepeatLimiter(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Before `redact`, and never with local variables: those hold whole events.
            structlog.processors.format_exc_info,
            redact,
            _console(colors=out.isatty()) if console else _json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers = [handler for handler in root.handlers if not isinstance(handler, _Forward)]
    root.addHandler(_Forward())
    root.setLevel(threshold if threshold == logging.DEBUG else max(threshold, logging.WARNING))


def _with_fields(fields: Mapping[str, object]) -> Callable[[object, str, EventDict], EventDict]:
    def add(_logger: object, _method: str, event: EventDict) -> EventDict:
        return {**fields, **event}

    return add


def mute(name: str) -> None:
    """Say nothing of what the standard library's logger `name` logs from now on."""
    logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _masked(key: str, value: object) -> object:
    """`value`, or what may be shown of it; looks into dictionaries and lists."""
    if _SECRET_FIELD.search(key):
        return MASK
    if isinstance(value, str):
        return _SECRET_TEXT.sub(_mask_match, value)
    if isinstance(value, Mapping):
        return {inner: _masked(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked("", item) for item in value]
    return value


def _mask_match(match: re.Match[str]) -> str:
    return f"{match['kept'] or match['scheme'] or ''}{MASK}"


def _json(_logger: object, _method: str, event: EventDict) -> str:
    """One line of JSON, what a reader looks for first in front. A log line never raises for what is in it."""
    ordered = {key: event.pop(key, None) for key in ("timestamp", "level", "event")} | dict(event)
    try:
        return orjson.dumps(ordered, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except (TypeError, ValueError):  # a number or text beyond what orjson takes
        return json.dumps(ordered, default=str, skipkeys=True)


def _console(*, colors: bool) -> Callable[[object, str, EventDict], str]:
    """Lines for people: fields as the caller ordered them, without those that hold nothing; seconds are enough."""
    line = structlog.dev.ConsoleRenderer(
        _EVENT_WIDTH, colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )

    def render(logger: object, method: str, event: EventDict) -> str:
        shown = {name: value for name, value in event.items() if value is not None}
        shown["timestamp"] = f"{shown['timestamp'][:19].replace('T', ' ')}Z"
        if shown["event"] not in _TALL:
            return line(logger, method, shown)
        head = {name: shown.pop(name) for name in ("timestamp", "level", "event")}
        return "\n".join([str(line(logger, method, head)).rstrip(), *map(_below, shown.items())])

    return render


def _below(item: tuple[str, object]) -> str:
    name, value = item
    words = ("no", "yes")[value] if isinstance(value, bool) else value
    return f"    {name.replace('_', ' '):<12} {words}"
