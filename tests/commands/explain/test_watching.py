"""``explain --watch``: explained again after each save, with what it changed, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from consumer.commands.explain.explaining import explanations
from consumer.commands.explain.watching import show_saves
from consumer.settings import load
from tests.commands.test_comparison import EXAMPLE, MAPPING, RECORDS, Try
from tests.end_to_end.processes import ROOT
from tests.support.limits import LATE
from tests.support.terminal import OnTerminal

NOW = 1_772_366_400.0
WAITING = "waiting for the next save; Ctrl-C ends."


@pytest.fixture
def tried(tmp_path: Path) -> Try:
    """Two records, and schemas that may be changed."""
    made = Try(tmp_path, RECORDS[:2])
    schemas = tmp_path / "schemas"
    schemas.mkdir()
    (schemas / "event.avsc").write_text((EXAMPLE / "schemas" / "shop_event.avsc").read_text())
    made.env["PINSTREAM_SCHEMAS_DIR"] = str(schemas)
    return made


def watched(
    tried: Try, saves: Iterable[Callable[[], object]], capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Return what is printed at first and after each of the `saves`, which are done while it waits; then Ctrl-C."""
    settings, due = load(tried.env, needs=()), iter(saves)
    printed: list[str] = []
    quiet = 0

    def wait(seconds: float) -> None:
        nonlocal quiet
        text = capsys.readouterr().out
        if text:
            printed.append(text)
        # What is saved is noticed within two polls; a third shows that nothing more comes of it.
        quiet = 0 if text else quiet + 1
        if quiet < 3:
            return
        quiet = 0
        save = next(due, None)
        if save is None:
            raise KeyboardInterrupt
        save()

    show_saves(str(tried.samples), settings, partial(explanations, str(tried.samples), NOW, settings), wait)
    return printed


def test_it_shows_record_event_reasons_coverage_and_what_changed(
    tried: Try, capsys: pytest.CaptureFixture[str]
) -> None:
    """Records are masked, and those that changed come first; the same file saved again changes nothing."""
    edits = ('"user_data.ph" = "buyer.phone"', ""), ('"custom_data.value" = "order.grand_total"', "")
    first, second, third = watched(
        tried, [lambda: tried.edit(*edits), lambda: tried.edit(*edits, ("SHOP", "SHOP"))], capsys
    )
    assert '"email": "***"' in first
    assert '"grand_total": "20.25"' in first
    assert "record 1: deliverable" in first
    assert '"event_id": "id-0"' in first
    assert "recommended field" in first
    assert "Since the last save" not in first
    assert first.rstrip().endswith(WAITING)
    assert "2 of 2 records change." in second.partition("Since the last save:")[2]
    assert "checkout custom_data.value lost: 2 records; CHF 22.25 → 0.00; EUR 20.25 → 0.00" in second
    assert "checkout user_data.ph lost: 2 records" in second
    assert "Nothing changes: 2 records" in third
    assert not any("buyer0@example.com" in text for text in (first, second, third))


def test_errors_are_shown_and_the_next_save_is_waited_for(
    tried: Try, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then it says what changed since the last save that was right."""
    schema = Path(tried.env["PINSTREAM_SCHEMAS_DIR"]) / "event.avsc"
    whole = schema.read_text()
    printed = watched(
        tried,
        [
            lambda: tried.new.write_text(MAPPING[: MAPPING.index("user_data.em") + 5]),
            lambda: tried.edit(("buyer.email", "buyer.mail")),
            lambda: tried.edit(),
            lambda: schema.write_text(whole[:-40]),
            lambda: schema.write_text(whole),
            tried.samples.unlink,
            lambda: tried.samples.write_text('{"meta": 1}\n'),
        ],
        capsys,
    )
    assert len(printed) == 8
    for text, part in zip(printed[1:3], ("TOML", "buyer.mail"), strict=True):
        assert text.startswith("pinstream: ")
        assert part in text
        assert text.rstrip().endswith(WAITING)
    assert "Nothing changes: 2 records" in printed[3]
    assert printed[4].startswith("pinstream: ")
    assert "Nothing changes: 2 records" in printed[5]
    assert "cannot be read" in printed[6]
    assert "record 1: rejected: misfit (decode)" in printed[7]
    assert "2 records before, 1 now." in printed[7]
    assert "accepted → dead_lettered: decode: misfit" in printed[7]


def test_a_file_that_is_replaced_or_written_in_steps_counts_once(
    tried: Try, capsys: pytest.CaptureFixture[str]
) -> None:
    """Editors write another file and rename it; a file that still grows is not explained yet."""
    other = tried.new.with_suffix(".new")

    def replace() -> None:
        other.write_text(MAPPING.replace("checkout", "add_to_cart"))
        os.utime(other, ns=(tried.new.stat().st_atime_ns, tried.new.stat().st_mtime_ns))
        other.replace(tried.new)

    settings, steps = load(tried.env, needs=()), 0
    assert "event_name changed: 2 records" in watched(tried, [replace], capsys)[1]

    def wait(seconds: float) -> None:
        nonlocal steps
        steps += 1
        if steps > 12:
            raise KeyboardInterrupt
        if 3 <= steps < 9:  # grows with each poll
            with tried.new.open("a") as file:
                file.write(f"# {steps}\n")

    show_saves(str(tried.samples), settings, partial(explanations, str(tried.samples), NOW, settings), wait)
    assert capsys.readouterr().out.count(WAITING) == 2


def test_the_function_is_imported_again(
    tried: Try, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A save of its module counts as one of the mapping; two in a second, of one size, too, and one that is wrong."""
    module = tmp_path / "watchedshop.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    tried.env["PINSTREAM_TRANSFORM"] = "watchedshop:clean"
    times = count(int(NOW * 1e9))

    def save(value: str) -> None:
        change = f"record['order'] |= {{'grand_total': Decimal({value})}}"
        text = f"from decimal import Decimal\ndef clean(record):\n    {change}\n    return record\n"
        module.write_text(text)
        os.utime(module, ns=(0, next(times)))

    save("'1.00'")
    printed = watched(tried, [lambda: save("'2.00'"), lambda: save("'3.0"), lambda: save("'4.00'")], capsys)
    assert "custom_data.value changed: 2 records; CHF 1.00 → 2.00; EUR 1.00 → 2.00" in printed[1]
    assert printed[2].startswith(
        "pinstream: PINSTREAM_TRANSFORM='watchedshop:clean': watchedshop cannot be imported"
    )
    assert "CHF 2.00 → 4.00" in printed[3]


def test_the_command_in_a_terminal(tried: Try) -> None:
    """The real command: it clears the screen for each save, and Ctrl-C ends it with exit code 0."""
    line = [
        sys.executable,
        "-m",
        "consumer",
        "explain",
        str(tried.samples),
        "--now",
        "2026-03-01T12:00:00Z",
        "--watch",
    ]
    env = tried.env | {"TERM": "xterm"}
    with OnTerminal(line, cwd=ROOT, env=env, start_new_session=True) as terminal:
        assert "\x1b[2J" in terminal.until(WAITING)
        tried.edit(('"custom_data.value" = "order.grand_total"', ""))
        assert "2 of 2 records change." in terminal.until(WAITING)
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(LATE) == 0
