"""What is shown during a bounded run."""

from __future__ import annotations

import pytest

from consumer.commands.replay import bounded_run
from consumer.commands.replay.bounded_run import progress_line, watch


@pytest.mark.parametrize(
    ("done", "total", "seconds", "note", "line"),
    [
        (0, 100, 5.0, "", "replay: 0 of 100 (0%), 0 a second"),
        (50, 100, 5.0, "", "replay: 50 of 100 (50%), 10 a second, about 5 s left"),
        (1000, 61_000, 10.0, "", "replay: 1,000 of 61,000 (2%), 100 a second, about 10 min left"),
        (1000, 3_601_000, 10.0, "", "replay: 1,000 of 3,601,000 (0%), 100 a second, about 10.0 h left"),
        (0, 0, 1.0, "", "replay: 0 of 0 (100%), 0 a second"),
        (5, 5, 0.0, "destination halted", "replay: 5 of 5 (100%), 0 a second, destination halted"),
    ],
)
def test_a_line_has_rate_and_time_left(done: int, total: int, seconds: float, note: str, line: str) -> None:
    """Also for zeros; a note, such as why nothing moves, ends the line."""
    assert progress_line("replay", done, total, seconds, note) == line


def test_lines_come_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal: none in the first five seconds, then at most one in five; stdout is for results."""
    clock = [100.0]
    with watch("replay", 1000, lambda: clock[0]) as show:
        for tick in range(121):
            clock[0] = 100.0 + tick / 10
            show(tick, "")
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(" of ")[0] for line in err.splitlines()] == ["replay: 50", "replay: 100"]


def test_a_note_is_text_and_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may quote brackets of the platform or a proxy, which must not end the run as markup."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(bounded_run, "on_terminal", lambda: True)
    with watch("replay", 10) as show:
        show(3, "destination halted ([/v5/ad_accounts] says no)")
    assert "destination halted ([/v5/ad_accounts] says no)" in capsys.readouterr().err
