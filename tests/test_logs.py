"""The log: one format for all lines, no secret in any of them, no line ten thousand times."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
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
    """Lines below the level are not written; a second set-up replaces the first."""
    stream = io.StringIO()
    logs.configure(log_format="json", level="warning", stream=stream)
    structlog.get_logger().info("no")
    structlog.get_logger().error("yes")
    assert [line["event"] for line in lines_of(stream)] == ["yes"]
    first, second = io.StringIO(), io.StringIO()
    logs.configure(log_format="json", stream=first)
    logs.configure(log_format="json", stream=second)
    logging.getLogger("library").warning("once")
    assert (len(lines_of(first)), len(lines_of(second))) == (0, 1)


def test_library_lines_take_the_same_way() -> None:
    """A warning is a line of a constant event that names its logger; info lines are not written."""
    stream = io.StringIO()
    logs.configure(log_format="json", stream=stream)
    logging.getLogger("aiohttp.client").warning("closed %s, Authorization: Bearer abcdefghij", 3)
    logging.getLogger("aiohttp.client").info("chatter")
    logging.getLogger("aiohttp.client").log(35, "between the levels")
    assert [(line["level"], line["logger"]) for line in lines_of(stream)] == [
        ("warning", "aiohttp.client")
    ] * 2
    assert {line["event"] for line in lines_of(stream)} == {"library"}
    assert lines_of(stream)[0]["text"] == "closed 3, Authorization: Bearer [redacted]"


def test_a_library_line_with_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    """It is a line as well: `logging` itself would write its complaint to stderr, and wait for that."""
    stream = io.StringIO()
    logs.configure(log_format="json", stream=stream)
    record = logging.LogRecord("aiohttp.client", logging.WARNING, __file__, 1, "closed %d", ("none",), None)
    logging.getLogger().handlers[-1].handle(record)  # alone: those of pytest raise
    assert [line["text"] for line in lines_of(stream)] == ["closed %d"]
    assert capsys.readouterr().err == ""


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
        ("library", 3),
    ]


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        *(
            (
                {field: "abc", "inner": {field: ["abc"]}},
                {field: logs.REDACTED, "inner": {field: logs.REDACTED}},
            )
            for field in (
                *(
                    "token",
                    "access_token",
                    "PINTEREST_ACCESS_TOKEN",
                    "sasl.password",
                    "authorization",
                    "api_key",
                ),
                "client_secret",
            )
        ),
        *(
            ({field: "orders", "n": 3}, {field: "orders", "n": 3})
            for field in ("topic", "partition", "token_file", "keys", "event", "tokens_left", "outcome")
        ),
        *(
            ({"event": text, "many": (text,)}, {"event": shown, "many": [shown]})
            for text, shown in (
                ("Authorization: Bearer abcDEF123.-_~", "Authorization: Bearer [redacted]"),
                ("refused pina_AMAQ1234567890", "refused [redacted]"),
                ("redis://user:pass@host:6379/0", "redis://[redacted]@host:6379/0"),
                ("https://api.pinterest.com/v5", "https://api.pinterest.com/v5"),
            )
        ),
    ],
)
def test_secrets_are_masked(event: dict[str, Any], shown: dict[str, Any]) -> None:
    """By their field's name at any depth, or by their form in running text; the rest stays readable."""
    assert logs.redact(None, "info", event) == shown


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
        """One line for each message, whatever its numbers, with the count of those dropped since."""

        def reported(text: str) -> dict[str, Any] | None:
            try:
                return dict(self.limiter(None, "warning", {"event": "kafka_trouble", "text": text}))
            except structlog.DropEvent:
                return None

        assert reported("no connection to kafka-1:9092") is not None
        assert [reported(f"no connection to kafka-{number}:9092") for number in range(5)] == [None] * 5
        assert reported("2/2 brokers are down") is not None
        self.now = 59.9
        assert reported("no connection to kafka-1:9092") is None
        self.now = 60
        again = reported("no connection to kafka-2:9092")
        assert again is not None
        assert again["repeats_not_shown"] == 6
        assert reported("no connection to kafka-1:9092") is None
        for count in (3, 41, 500):
            with contextlib.suppress(structlog.DropEvent):
                self.limiter(None, "error", {"event": "dead_letters_not_stored", "count": count})
        self.now = 120
        letters = self.limiter(None, "error", {"event": "dead_letters_not_stored", "count": 7})
        assert letters == {"event": "dead_letters_not_stored", "count": 7, "repeats_not_shown": 2}

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
    assert [line["text"] for line in lines_of(stream)] == ["before", "other"]


class TestOutlet:
    """The one thread that writes: who logs never waits, and what cannot be written is dropped and counted."""

    @pytest.fixture
    def pipe(self) -> Iterator[tuple[int, int]]:
        """A pipe that takes 4,096 bytes."""
        logs.configure(stream=io.StringIO())
        out, into = os.pipe()
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 4096)
        yield out, into
        for end in (out, into):
            with contextlib.suppress(OSError):
                os.close(end)

    def configured(self, outlet: logs.Outlet, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let structlog write into this outlet."""
        monkeypatch.setattr(logs, "_put_of", lambda _: outlet.put)
        logs.configure(log_format="json")

    def read_until(self, out: int, what: bytes) -> list[str]:
        """The lines from the pipe until one has these bytes."""
        read = b""
        while what not in read or not read.endswith(b"\n"):
            read += os.read(out, 65536)
        return read.decode().splitlines()

    @pytest.mark.parametrize("blocks", [True, False])
    def test_a_reader_that_stands_still(
        self, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, blocks: bool
    ) -> None:
        """Lines wait up to the bound, in order; what does not fit is counted, and told once there is room again."""
        out, into = pipe
        os.set_blocking(into, blocks)
        outlet = logs.Outlet(into, max_bytes=50_000)
        self.configured(outlet, monkeypatch)
        for number in range(200):
            outlet.put(f"{number:03} " + "x" * 996)
        assert 200 - outlet.dropped in range(49, 55)  # 49 fit, and some are in the pipe
        written = 200 - outlet.dropped
        *lines, reported = self.read_until(out, b"log_lines_dropped")
        numbers = [int(line[:3]) for line in lines]
        # Behind the bound, those that came while the writer took some to the pipe.
        assert numbers[:49] == [*range(49)]
        assert numbers == sorted({*numbers})
        assert len(numbers) == written
        assert orjson.loads(reported)["lines"] == outlet.dropped == 200 - written

    def test_a_line_that_breaks_off_does_not_run_into_the_next(self, tmp_path: Path) -> None:
        """A disk that fills in the middle of a line and gets room again: a count, and whole lines behind it."""
        program = f"""if True:
            import resource, structlog, sys
            from consumer import logs
            logs.configure(log_format="json")
            log, most = structlog.get_logger(), resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, ({len('{"timestamp"')}, most))
            for number in range(3):
                log.info("lost", number=number)
            logs._outlet.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            log.info("written")
            assert logs.lines_dropped() == 3
        """
        path = tmp_path / "log"
        with path.open("ab") as file:
            done = subprocess.run([sys.executable, "-c", program], stderr=file, timeout=60, check=False)
        assert done.returncode == 0
        torn, *whole = path.read_text().splitlines()
        assert torn == '{"timestamp"'
        assert [(line["event"], line.get("lines")) for line in map(orjson.loads, whole)] == [
            ("written", None),
            ("log_lines_dropped", 3),
        ]

    def test_no_reader(self, pipe: tuple[int, int]) -> None:
        """Lines are dropped and counted."""
        out, into = pipe
        os.close(out)
        outlet = logs.Outlet(into)
        for _ in range(3):
            outlet.put("line")
        outlet.flush()
        assert outlet.dropped == 3

    def test_a_line_that_is_larger_than_the_queue(self, pipe: tuple[int, int]) -> None:
        """It is written if it is alone: a trace must not be lost on an idle log."""
        out, into = pipe
        outlet = logs.Outlet(into, max_bytes=10)
        outlet.put("x" * 100)
        assert self.read_until(out, b"x") == ["x" * 100]

    def test_the_end_waits_a_second_at_most(self, pipe: tuple[int, int]) -> None:
        """For all of its waits together, and the last line gets into the queue even if that is full."""
        out, into = pipe
        outlet = logs.Outlet(into, max_bytes=10_000)
        while not outlet.dropped:
            outlet.put("x" * 1000)
        begun = time.monotonic()
        outlet.put("the last", last=True)
        for _ in range(3):
            outlet.flush()
        assert logs.LAST_SECONDS <= time.monotonic() - begun < logs.LAST_SECONDS + 1.5
        assert self.read_until(out, b"the last")[-1] == "the last"

    @pytest.mark.parametrize(("command", "code"), [("explain", 1), ("run", 2)])
    def test_an_error_that_cannot_be_written(self, command: str, code: int) -> None:
        """The exit code is that of the error, also where the command has set up no log."""
        words = [command, "/none"] if command == "explain" else [command]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "consumer", *words],
                env={"PATH": os.environ["PATH"]}, stdout=subprocess.PIPE, stderr=full, timeout=60, check=False,
            )  # fmt: skip
        assert done.returncode == code

    def test_a_forked_child_has_its_own(self, pipe: tuple[int, int]) -> None:
        """It writes none of its parent's lines again, and its own though the parent's thread held the lock."""
        out, into = pipe
        outlet = logs.Outlet(into, max_bytes=1000)
        while not outlet.dropped:
            outlet.put("of the parent")
        with outlet._changed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parent has threads: that is the point
            child = os.fork()
            if not child:
                outlet.put("of the child")
                outlet.flush()
                os._exit(0)
        assert self.read_until(out, b"of the child").count("of the child") == 1
        assert os.waitpid(child, 0)[1] == 0

    def test_what_python_says_itself_takes_the_same_way(self) -> None:
        """Errors that end a thread or are raised in a finalizer, warnings, and those of asyncio."""
        program = """if True:
            import asyncio, threading, warnings
            from consumer import logs
            logs.configure(log_format="json")
            class Broken:
                def __del__(self):
                    raise ValueError("in a finalizer")
            def ends():
                raise ValueError("in a thread")
            async def unheard():
                asyncio.get_running_loop().create_future().set_exception(ValueError("in a future"))
            Broken()
            thread = threading.Thread(target=ends, name="of-a-library")
            thread.start()
            thread.join()
            warnings.warn("a warning")
            asyncio.run(unheard())
        """
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
        lines = [orjson.loads(line) for line in done.stderr.splitlines()]
        assert [line["logger"] for line in lines] == ["python", "python", "py.warnings", "asyncio"]
        assert lines[1]["text"] == "ValueError ended the thread of-a-library at <string>:9"
        assert b"in a thread" not in done.stderr
        for line, what in zip(lines, ("finalizer", "thread", "warning", "future"), strict=True):
            assert what in line["text"] + line.get("exception", "")


class TestConsole:
    """For people on a terminal."""

    def lines(self, event: str, **fields: object) -> list[str]:
        """The text of one event, without colours."""
        stream = io.StringIO()
        logs.configure(log_format="console", stream=stream)
        structlog.get_logger().info(event, **fields)
        return stream.getvalue().splitlines()

    def test_lines_for_people(self) -> None:
        """Fields in the caller's order, without None values; times in seconds. The start has one field per line."""
        [line] = self.lines("throttled", wait_seconds=1.5, account="1", request_id=None)
        assert re.fullmatch(
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ \[info +\] throttled +wait_seconds=1.5 account=1", line
        )
        lines = self.lines("starting", reads="orders", sends_to="https://example.org", test_mode=False)
        assert lines[0].endswith("] starting")
        assert lines[1:] == [
            "    reads        orders",
            "    sends to     https://example.org",
            "    test mode    no",
        ]
