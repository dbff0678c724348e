"""The process under watch: ``pinstream run`` as a deployment starts it, and what can be asked of it from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
_OURS = ("KAFKA_", "PINSTREAM_", "PINTEREST_", "SCHEMA_REGISTRY_")
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


class WatchedProcess:
    """``pinstream run`` with `settings` and no other PINSTREAM variables; a context manager: the process has
    ended when it exits."""

    def __init__(self, settings: Mapping[str, str], log: Path) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        self._log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "consumer", "--debug", "run"],
                env={**inherited, **settings},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=sink,
            )
        self._page = ""

    def __enter__(self) -> Self:
        deadline = time.monotonic() + _START_SECONDS
        while not self._page:
            self.check()
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"pinstream did not start within {_START_SECONDS:g} s:\n{self.last_words()}"
                )
            time.sleep(0.05)
            self._page = next((line["page"] for line in self._lines() if line["event"] == "starting"), "")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(_STOP_SECONDS)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def check(self) -> None:
        """Raise `RuntimeError`, with its last words, if it has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"pinstream ended with {self._process.returncode}:\n{self.last_words()}")

    def status(self) -> dict[str, Any]:
        """Its /status document."""
        self.check()
        with urllib.request.urlopen(f"{self._page.rstrip('/')}/status", timeout=30) as answer:
            document: dict[str, Any] = json.load(answer)
        return document

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        self._process.terminate()
        return self._process.wait(_STOP_SECONDS)

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text("utf-8", "replace")[-3000:]

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.endswith("}")]
