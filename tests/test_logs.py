"""The log: one format for all lines, no secret in any of them, no line ten thousand times."""

from __future__ import annotations

import io
import logging
import re
import threading
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
import structlog
from pydantic import SecretStr

from consumer import logs


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Restore `logging` and structlog."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines_of(stream: io.StringIO) -> list[dict[str, Any]]:
    """The JSON lines written so far."""
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_hold_time_level_event_and_fields() -> None:
    """JSON: one object a line, with timestamp, level and event first."""
    stream = io.StringIO()
    logs.configure(log_format="json", stream=stream)
    structlog.get_logger().info("batch sent", events=3)
    [line] = lines_of(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert (line["level"], line["event"], line["events"]) == ("info", "batch sent", 3)
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(("stream", "is_json"), [(io.StringIO(), True), (Terminal(), False)])
def test_format_follows_the_terminal(stream: io.StringIO, is_json: bool) -> None:
    """Without a set format a terminal gets readable lines, anything else JSON."""
    logs.configure(stream=stream)
    structlog.get_logger().info("started")
    assert stream.getvalue().startswith("{") is is_json
    assert "started" in stream.getvalue()


def test_level_is_a_threshold() -> None:
    """Lines below the level are not written."""
    stream = io.StringIO()
    logs.configure(log_format="json", level="warning", stream=stream)
    structlog.get_logger().info("no")
    structlog.get_logger().error("yes")
    assert [line["event"] for line in lines_of(stream)] == ["yes"]


def test_library_lines_take_the_same_way() -> None:
    """A warning from `logging` becomes a line that names its logger; its info lines do not."""
    stream = io.StringIO()
    logs.configure(log_format="json", stream=stream)
    logging.getLogger("aiohttp.client").warning("closed %s, Authorization: Bearer abcdefghij", 3)
    logging.getLogger("aiohttp.client").info("chatter")
    logging.getLogger("aiohttp.client").log(35, "between the levels")
    assert [(line["level"], line["logger"]) for line in lines_of(stream)] == [
        ("warning", "aiohttp.client")
    ] * 2
    assert lines_of(stream)[0]["event"] == "closed 3, Authorization: Bearer [redacted]"


def test_fields_of_every_line() -> None:
    """On our lines, a library's, and those of a thread, which has no context."""
    out = io.StringIO()
    logs.configure(log_format="json", stream=out, always={"worker": 3})
    structlog.get_logger().info("ours", worker=1)
    thread = threading.Thread(target=lambda: logging.getLogger("library").warning("theirs"))
    thread.start()
    thread.join()
    assert [(one["event"], one["worker"]) for one in map(orjson.loads, out.getvalue().splitlines())] == [
        ("ours", 1),
        ("theirs", 3),
    ]


def test_configuring_twice_does_not_double_lines() -> None:
    """A second set-up replaces the first."""
    first, second = io.StringIO(), io.StringIO()
    logs.configure(log_format="json", stream=first)
    logs.configure(log_format="json", stream=second)
    logging.getLogger("library").warning("once")
    assert (len(lines_of(first)), len(lines_of(second))) == (0, 1)


@pytest.mark.parametrize(
    "field",
    [
        "token",
        "access_token",
        "PINTEREST_ACCESS_TOKEN",
        "sasl.password",
        "authorization",
        "api_key",
        "client_secret",
    ],
)
def test_fields_named_like_secrets_are_masked(field: str) -> None:
    """A field that is called a token, password or key is masked at any depth."""
    event = logs.redact(None, "info", {field: "abc", "inner": {field: ["abc"]}})
    assert event == {field: logs.REDACTED, "inner": {field: logs.REDACTED}}


@pytest.mark.parametrize(
    "field", ["topic", "partition", "token_file", "keys", "event", "tokens_left", "outcome"]
)
def test_other_fields_are_left_alone(field: str) -> None:
    """Fields with similar names that are no secrets stay readable."""
    assert logs.redact(None, "info", {field: "orders", "n": 3}) == {field: "orders", "n": 3}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer abcDEF123.-_~", "Authorization: Bearer [redacted]"),
        ("refused pina_AMAQ1234567890", "refused [redacted]"),
        ("redis://user:pass@host:6379/0", "redis://[redacted]@host:6379/0"),
        ("https://api.pinterest.com/v5", "https://api.pinterest.com/v5"),
    ],
)
def test_text_that_looks_like_a_secret_is_masked(text: str, shown: str) -> None:
    """A token in running text is masked by its form, and the rest of the text stays."""
    assert logs.redact(None, "info", {"event": text, "many": (text,)}) == {"event": shown, "many": [shown]}


def test_exceptions_are_text_without_secrets_or_locals() -> None:
    """A logged exception shows its trace, masked, and no local variables."""
    stream = io.StringIO()
    logs.configure(log_format="json", stream=stream)
    shopper = "shopper@example.com"
    try:
        raise ValueError("Bearer abcdefghijkl")
    except ValueError:
        structlog.get_logger().exception("failed")
    [line] = lines_of(stream)
    assert "ValueError: Bearer [redacted]" in line["exception"]
    assert shopper not in stream.getvalue()


@pytest.mark.parametrize("value", [10**30, "\ud800", object(), SecretStr("hush"), {1: 2}])
def test_no_value_breaks_a_line(value: object) -> None:
    """A line is written for any value of a field, and a wrapped secret stays wrapped."""
    stream = io.StringIO()
    logs.configure(log_format="json", stream=stream)
    structlog.get_logger().info("odd", value=value)
    assert len(stream.getvalue().splitlines()) == 1
    assert "hush" not in stream.getvalue()


class TestRepeatLimiter:
    """A limited number of lines of a kind in each interval, and a count of the rest."""

    def setup_method(self) -> None:
        self.now = 0.0
        self.limiter = logs.RepeatLimiter(burst=2, interval=10, kinds=2, clock=lambda: self.now)

    def passes(self, event: str, level: str = "info") -> dict[str, Any] | None:
        """The event after the limiter, None if it was dropped."""
        try:
            return dict(self.limiter(None, level, {"event": event}))
        except structlog.DropEvent:
            return None

    def test_repeats_beyond_the_burst_are_dropped_and_counted(self) -> None:
        """The line after the interval says how many were not shown, and only that one."""
        shown = [self.passes("down") is not None for _ in range(5)]
        assert shown == [True, True, False, False, False]
        self.now = 10
        assert self.passes("down") == {"event": "down", "repeats_not_shown": 3}
        assert self.passes("down") == {"event": "down"}

    def test_kinds_are_counted_apart(self) -> None:
        """Another event, or the same one at another level, has its own count."""
        for _ in range(3):
            self.passes("down")
        assert self.passes("up") is not None
        assert self.passes("down", "error") is not None

    def test_what_is_said_over_and_over_passes_once_a_minute(self) -> None:
        """One line for each message, whatever its numbers, with the count of those that were dropped since."""

        def told(text: str) -> dict[str, Any] | None:
            try:
                return dict(self.limiter(None, "warning", {"event": "kafka_trouble", "text": text}))
            except structlog.DropEvent:
                return None

        assert told("no connection to kafka-1:9092") is not None
        assert [told(f"no connection to kafka-{number}:9092") for number in range(5)] == [None] * 5
        assert told("2/2 brokers are down") is not None
        self.now = 59.9
        assert told("no connection to kafka-1:9092") is None
        self.now = 60
        again = told("no connection to kafka-2:9092")
        assert again is not None
        assert again["repeats_not_shown"] == 6
        assert told("no connection to kafka-1:9092") is None

    def test_memory_is_bounded(self) -> None:
        """Kinds above the limit replace the one that was not seen for longest."""
        for _ in range(3):
            self.passes("a")
        self.passes("b")
        self.passes("c")
        assert self.passes("a") == {"event": "a"}


def test_a_logger_can_be_muted() -> None:
    """Lines of that logger are dropped; those of others are not."""
    stream = io.StringIO()
    logs.configure(log_format="json", stream=stream)
    name = "tests.of.muting"
    logging.getLogger(name).error("before")
    logs.mute(name)
    try:
        logging.getLogger(name).critical("after")
        logging.getLogger("tests.of.others").error("other")
    finally:
        logging.getLogger(name).setLevel(logging.NOTSET)
    assert [line["event"] for line in lines_of(stream)] == ["before", "other"]


class TestConsole:
    """For people on a terminal."""

    def lines(self, event: str, **fields: object) -> list[str]:
        """The text of one event, without colours."""
        stream = io.StringIO()
        logs.configure(log_format="console", stream=stream)
        structlog.get_logger().info(event, **fields)
        return stream.getvalue().splitlines()

    def test_fields_stand_as_the_caller_ordered_them(self) -> None:
        """Fields in the caller's order, without None values; times in seconds."""
        [line] = self.lines("throttled", wait_seconds=1.5, account="1", request_id=None)
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ \[info +\] throttled +wait_seconds=1.5 account=1", line
        )

    def test_the_start_is_one_field_a_line(self) -> None:
        """The line of the start has one field per line, because people read it in full."""
        lines = self.lines("starting", reads="orders", sends_to="https://example.org", test_mode=False)
        assert lines[0].endswith("] starting")
        assert lines[1:] == [
            "    reads        orders",
            "    sends to     https://example.org",
            "    test mode    no",
        ]

    def test_a_line_says_how_many_like_it_were_not_shown(self) -> None:
        """The limiter works for the console too."""
        stream = io.StringIO()
        logs.configure(log_format="console", stream=stream)
        for _ in range(30):
            structlog.get_logger().warning("down")
        assert len(stream.getvalue().splitlines()) == 10
