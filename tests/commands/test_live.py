"""The live view of `pinstream demo` stands below the log and is never torn: wide, narrow, and when the size changes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import pytest

from consumer.commands.live import Below, live_view
from tests.end_to_end.processes import bare_environment
from tests.web.building import busy

CODE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")
END = b"\x00"
SIZES = [(110, 24), (40, 9), (14, 4)]
"""Columns and lines."""


class Screen:
    """What a terminal shows, and what has left it at the top. It knows the codes that the view uses, and no other."""

    def __init__(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        self.gone: list[str] = []
        self.rows = [""]
        self.wrapped = ""
        self.row = self.column = 0

    def resize(self, columns: int, lines: int) -> None:
        """Cut what does not fit, as xterm does."""
        self.columns, self.lines = columns, lines
        self.rows = [row[:columns] for row in self.rows]
        self._scroll()

    def feed(self, text: str) -> None:
        """Show what was written."""
        at = 0
        while at < len(text):
            if code := CODE.match(text, at):
                self._control(code[1], code[2])
                at = code.end()
                continue
            sign, at = text[at], at + 1
            if sign == "\r":
                self.column = 0
            elif sign == "\n":
                self._next_row()
            else:
                if self.column == self.columns:
                    self.column = 0
                    self._next_row()
                row = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = row[: self.column] + sign + row[self.column + 1 :]
                self.column += 1

    def _control(self, number: str, code: str) -> None:
        assert code in "AHJm", f"an unknown code: {number}{code}"
        if code == "A":
            assert self.row >= int(number), "up beyond what is on the screen"
            self.row -= int(number)
        elif code == "H":
            self.row = self.column = 0
        elif code == "J" and number == "2":
            self.rows = [""]
            self.row = 0
        elif code == "J":
            self.rows[self.row] = self.rows[self.row][: self.column]
            del self.rows[self.row + 1 :]

    def _next_row(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append("")
        self._scroll()

    def _scroll(self) -> None:
        while len(self.rows) > self.lines:
            self.gone.append(self.rows.pop(0))
            self.row -= 1


class Terminal:
    """A pseudo-terminal, and the screen that shows what is written to it. A context manager."""

    def __init__(self, columns: int, lines: int) -> None:
        self.master, side = pty.openpty()
        self.out = open(side, "w", encoding="utf-8")  # noqa: SIM115 - closed at the end
        self.screen = Screen(columns, lines)
        self.written = ""
        self.resize(columns, lines)
        self._read: SimpleQueue[bytes] = SimpleQueue()
        self._reader = threading.Thread(target=self._read_on, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.out.close()
        self._reader.join(60)
        os.close(self.master)

    def _read_on(self) -> None:
        try:
            while data := os.read(self.master, 65536):
                self._read.put(data)
        except OSError:  # nobody has the other side open any more
            self._read.put(END)

    def resize(self, columns: int, lines: int) -> None:
        """Give it another size."""
        fcntl.ioctl(self.out.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(columns, lines)

    def shown(self) -> list[str]:
        """The rows on the screen, now that all that was written is read."""
        self.out.write(END.decode())
        self.out.flush()
        data = b""
        while not data.endswith(END):
            data += self._read.get(timeout=60)
        self.written += (text := data.rstrip(END).decode())
        self.screen.feed(text)
        return [row.rstrip() for row in self.screen.rows]


def view_on(terminal: Terminal) -> list[str]:
    """The labels of the view at the bottom of the screen, from its first line on."""
    labels = [row.split(" ")[0] for row in terminal.shown()]
    return labels[labels.index("page") :] if "page" in labels else labels


LABELS = ["page", "settled", "rates", "ledger", "destination", "lag", "latency"]


@pytest.mark.parametrize(("columns", "lines"), SIZES)
def test_lines_of_the_log_stand_whole_above_the_view(columns: int, lines: int) -> None:
    """Whichever thread logs, every line is there once and in order; nothing is left once it is closed."""
    view, text = live_view(busy(), {"settled": 1234.5}, "12 of 34", "http://127.0.0.1:8080/"), "x" * 60
    with Terminal(columns, lines) as terminal:
        below = Below(terminal.out)

        def log(name: str) -> None:
            for number in range(20):
                below.write(f"{name}{number:02} {text}\n")

        for round_ in range(5):
            threads = [threading.Thread(target=log, args=(f"{name}{round_}-",)) for name in "abc"]
            for thread in threads:
                thread.start()
            for _ in range(10):
                below.draw(view)
            for thread in threads:
                thread.join()
            assert view_on(terminal)[: len(LABELS)] == LABELS[: lines - 1]
        below.close()
        rows = terminal.shown()
    logged = re.findall(rf"([abc]\d-\d\d) {text}", "".join((*terminal.screen.gone, *rows)))
    for name in "abc":
        mine = [line for line in logged if line[0] == name]
        assert mine == [f"{name}{round_}-{number:02}" for round_ in range(5) for number in range(20)]
    assert not [row for row in rows if row.startswith(tuple(LABELS))]


def test_another_size_leaves_nothing_of_the_former_view() -> None:
    """After each change the screen has the latest lines of the log, and the view once, cut to the new size."""
    view = live_view(busy(), {"settled": 1.0}, "12 of 34", "http://127.0.0.1:8080/")
    with Terminal(110, 24) as terminal:
        below = Below(terminal.out)
        for number, (columns, lines) in enumerate([*SIZES, (80, 30), (20, 8), (200, 50)]):
            terminal.resize(columns, lines)
            below.draw(view)
            below.write(f"line {number}\n")
            rows = terminal.shown()
            assert sum(row.startswith("page") for row in rows) == 1
            assert view_on(terminal)[: len(LABELS)] == LABELS[: lines - 1]
            above = rows[: [row.split(" ")[0] for row in rows].index("page")]
            assert (
                above == [f"line {one}" for one in range(number + 1)][-len(above) :] if above else lines <= 11
            )
        below.close()


def test_a_demo_on_a_terminal(tmp_path: Path) -> None:
    """Its end says which faults it survived, why records were refused and how fast it was."""
    words = "demo --events 1500 --rate 1000 --invalid 0.1 --faults --seed 4"
    env = bare_environment(tmp_path) | {"TERM": "xterm-256color", "PINSTREAM_BATCH_EVENTS": "50"}
    line, none = [sys.executable, "-m", "consumer", *words.split()], subprocess.DEVNULL
    with Terminal(100, 30) as terminal:
        streams: Any = {"stdin": none, "stdout": subprocess.PIPE, "stderr": terminal.out}
        done = subprocess.run(line, env=env, timeout=120, check=True, text=True, **streams)
        terminal.shown()
    drawn = CODE.sub("", terminal.written)
    for pattern in (
        r"page +http://127\.0\.0\.1:\d+/",
        r"settled +[\d,]+ of 1,500 in ",
        r"rates +[\d,]+/s produced, [\d,]+/s settled, [\d,]+/s delivered",
        r"ledger +[\d,]+ read = [\d,]+ delivered \+ ",
        r"destination +\w+, calls in flight: \d",
        r"lag +[\d,]+ records, oldest ",
        r"latency +p50 [\d.]+ m?s",
        r"refused +(convert|decode) \w+: ",
        r"\[warning  \] no_verdict ",
    ):
        assert re.search(pattern, drawn), pattern
    assert re.search(r"^1,500 records in .*: [\d,]+ a second; calls took p50 ", done.stdout, re.MULTILINE)
    assert re.search(r"^faults survived: \d+ x ", done.stdout, re.MULTILINE)
    assert re.search(r"^why records were refused:\n  \d+ convert \w+: ", done.stdout, re.MULTILINE)
