"""Runs ``python -m consumer`` as a person or a deployment does: a process, an environment, an exit code.

`command` runs one to its end; `Process` is one that serves until it is told to stop. Both are bounded, both see
only the variables that they are given, and nothing of them outlives the test.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from tests.support.kafka.harness import Kafka
from tests.support.launcher import Launched, can_launch, launch

ROOT = Path(__file__).resolve().parents[2]
WITHIN = 120.0
"""Seconds that anything may take; far more than it does take."""
TOKEN = "pina_end_to_end"
ACCOUNT = "549755885175"


class RunningProgram(NamedTuple):
    """A version of pinstream: the Python that has its dependencies, and the folder of its source."""

    python: str
    root: Path

    def line(self, arguments: tuple[str, ...], env: Mapping[str, str]) -> list[str]:
        """The command, to be started in `root` with this environment."""
        module = "tests.support.switches" if "SWITCHES" in env else "consumer"
        return [self.python, "-m", module, *arguments]


THIS = RunningProgram(sys.executable, ROOT)
"""The version under test."""


def start(
    line: Sequence[str],
    env: Mapping[str, str],
    streams: Sequence[int],
    cwd: Path = ROOT,
    *,
    fresh: bool = False,
) -> Launched | subprocess.Popen[bytes]:
    """Start a command, by the launcher if that is the same. `streams`: its standard streams."""
    if not fresh and list(line[:2]) == [sys.executable, "-m"] and can_launch(env):
        return launch(line[2], line[3:], env, streams)
    stdin, stdout, stderr = streams
    return subprocess.Popen(line, env=dict(env), cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr)


def bare_environment(folder: Path) -> dict[str, str]:
    """What every process has: no settings, and a home of its own."""
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "LANG": "C.UTF-8"}


def run_environment(
    folder: Path, kafka: Kafka, topic: str, group: str, url: str, **settings: str
) -> dict[str, str]:
    """What ``run`` needs, and `settings`."""
    # On the embedded broker a classic group takes seconds for each rebalance; KIP-848 there is immediate.
    quick = {"KAFKA_GROUP_PROTOCOL": "consumer"} if kafka.kind == "embedded" else {}
    return {
        **bare_environment(folder),
        **quick,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KAFKA_TOPICS": topic,
        "KAFKA_GROUP_ID": group,
        "PINTEREST_AD_ACCOUNT_ID": ACCOUNT,
        "PINTEREST_ACCESS_TOKEN": TOKEN,
        "PINTEREST_API_URL": url,
        "PINSTREAM_STATE_DIR": str(folder / "state"),
        "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0",
        "PINSTREAM_LOG_FORMAT": "json",
        "PINSTREAM_LINGER": "50ms",
        **settings,
    }


def quick_group(kafka: Kafka) -> dict[str, str]:
    """The settings of a group that takes a dead member's partitions over after 6 s."""
    if kafka.kind == "embedded":
        return {}
    return {"KAFKA_SESSION_TIMEOUT_MS": "6000", "KAFKA_HEARTBEAT_INTERVAL_MS": "300"}


def command(
    *arguments: str, env: Mapping[str, str], stdin: str | bytes = b"", timeout: float = WITHIN
) -> subprocess.CompletedProcess[str]:
    """Run ``pinstream ARGUMENTS`` to its end."""
    raw = stdin.encode() if isinstance(stdin, str) else stdin
    line = THIS.line(arguments, env)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        ending, writing = os.pipe()
        try:
            process = start(line, env, (ending, out.fileno(), err.fileno()))
        finally:
            os.close(ending)
        writer = threading.Thread(target=_give, args=(writing, raw))
        writer.start()
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout)
            raise
        writer.join()
        out.seek(0)
        err.seek(0)
        texts = [stream.read().decode("utf-8", "replace") for stream in (out, err)]
    return subprocess.CompletedProcess(line, code, *texts)


def _give(stream: int, content: bytes) -> None:
    """Write `content` to a process that may end before it has read it, and close the pipe."""
    with contextlib.suppress(BrokenPipeError), open(stream, "wb") as pipe:
        pipe.write(content)


def the_one_line(stderr: str) -> str:
    """The error of a process whose stderr must be exactly one line of pinstream."""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("pinstream: "), stderr
    return lines[0].removeprefix("pinstream: ")


def last_error(stderr: str) -> str:
    """The last line of stderr that is neither a log line nor a warning; there must be no traceback."""
    assert "Traceback" not in stderr, stderr
    said = [line for line in stderr.strip().splitlines() if line.startswith("pinstream: ")]
    ours = [line for line in said if not line.startswith("pinstream: warning: ")]
    assert len(ours) == 1, stderr
    assert stderr.strip().splitlines()[-1] == ours[0], stderr
    return ours[0].removeprefix("pinstream: ")


def wait_for(condition: Callable[[], Any], what: str, within: float = WITHIN) -> Any:
    """Wait, for a bounded time, until `condition` returns something true; return that.

    It is asked less and less often: most conditions ask a process or the broker, which costs both a few milliseconds.
    """
    deadline, pause = time.monotonic() + within, 0.01
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {within:g} s in vain for {what}"
        time.sleep(pause)
        pause = min(1.3 * pause, 0.1)


class Process:
    """``pinstream ARGUMENTS`` until it is told to stop. A context manager: at its end the process is gone.

    `under`: a command that starts the one appended to it, and becomes or waits for it. `fresh`: not by the launcher
    (`tests.support.launcher`), for tests of starts and of memory.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        env: Mapping[str, str],
        under: tuple[str, ...] = (),
        program: RunningProgram = THIS,
        fresh: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{arguments[0]}-{time.monotonic_ns()}"
        self._out, self._err = folder / f"{stem}.out", folder / f"{stem}.err"
        line = [*under, *program.line(arguments, {} if under else env)]
        with self._out.open("wb") as out, self._err.open("wb") as err, open(os.devnull, "rb") as nothing:
            streams = (nothing.fileno(), out.fileno(), err.fileno())
            self._process = start(line, env, streams, program.root, fresh=fresh)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(WITHIN)

    @property
    def stdout(self) -> str:
        """Its output so far."""
        return self._out.read_text("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Its error output so far."""
        return self._err.read_text("utf-8", "replace")

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log lines."""
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{")]

    def until(self, condition: Callable[[], Any], what: str, within: float = WITHIN) -> Any:
        """`wait_for`, which also fails when the process ends."""

        def hold() -> Any:
            found = condition()
            assert found or self._process.poll() is None, f"it ended before {what}:\n{self.stderr[-3000:]}"
            return found

        try:
            return wait_for(hold, what, within)
        except AssertionError as error:
            if self._process.poll() is None:
                error.add_note(self._state())
            raise

    def _state(self) -> str:
        """What it is doing, for the message of a failure."""
        try:
            status = self.status()
            stands = json.dumps(
                {key: status.get(key) for key in ("room", "ledger", "partitions", "destination")}
            )
        except (OSError, AssertionError) as error:
            stands = f"{error!r}"
        return f"/status: {stands}\nsaid last:\n{self.stderr[-6000:]}"

    def until_logged(self, event: str) -> dict[str, Any]:
        """The first log line with this event name."""
        found: dict[str, Any] = self.until(
            lambda: next((line for line in self.log if line.get("event") == event), None),
            f"the log line {event}",
        )
        return found

    @cached_property
    def page(self) -> str:
        """The address of its HTTP server, which the log has."""
        address: str = self.until_logged("starting")["page"]
        return address

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of an answer of its HTTP server."""
        try:
            with urllib.request.urlopen(self.page.rstrip("/") + path, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def status(self) -> dict[str, Any]:
        """Its /status document."""
        code, body = self.get("/status")
        assert code == 200
        document: dict[str, Any] = json.loads(body)
        return document

    def ledger(self) -> dict[str, int]:
        """Its present ledger, which must add up at every moment."""
        ledger: dict[str, int] = self.status()["ledger"]
        parts = ("delivered", "duplicate", "filtered", "dead_lettered", "open")
        assert ledger["read"] == sum(ledger[part] for part in parts)
        return ledger

    def until_settled(self, records: int) -> dict[str, int]:
        """Wait until it has read `count` records and all are settled; return that ledger."""

        def settled() -> dict[str, int] | None:
            ledger = self.ledger()
            return ledger if ledger["read"] >= records and not ledger["open"] else None

        found: dict[str, int] = self.until(settled, f"{records} settled records")
        return found

    @property
    def pid(self) -> int:
        """The id of the process, or of the command that it was started under."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Stop it; return its exit code, and how many seconds it took."""
        begun = time.monotonic()
        self._process.send_signal(number)
        return self.wait(), time.monotonic() - begun

    def kill(self) -> None:
        """Send SIGKILL and wait for its end."""
        self._process.kill()
        self._process.wait(WITHIN)

    def wait(self) -> int:
        """Wait, for a bounded time, until it ends by itself; return its exit code."""
        return self._process.wait(WITHIN)
