"""The questions about event quality: when they are asked, by virtual time, and that nothing else follows from them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from consumer.adapters.account_reads import AccountReads, NotKnown
from consumer.app.quality import QualityWatch, account_reads
from consumer.app.run import member
from consumer.engine.figures.quality import QualityScore
from consumer.engine.figures.statistics import Statistics
from consumer.errors import SettingsError
from consumer.settings import Settings
from consumer.workers.merging import NO_WORKER
from tests.service.virtual_time import run
from tests.settings.environment import with_

ACCOUNT, OTHER = "7", "8"
GOOD = QualityScore("WEB", "CONVERSIONS_API", "GOOD", {})
HOUR = 3600.0
ALONE = replace(NO_WORKER, joined=True, quota_members=1)


def settings(tmp_path: Path, **more: str) -> Settings:
    """Settings of a member; `more` is added."""
    own = {"HOME": str(tmp_path), "PINTEREST_AD_ACCOUNT_ID": ACCOUNT, "PINSTREAM_KEY_STORE": "memory:"}
    return with_(**(own | more))


class FakeReads:
    """Stands in for the API: it counts the questions and answers as told."""

    def __init__(self) -> None:
        self.api = self
        self.asked: list[tuple[float, str]] = []
        self.answer: Callable[[str], tuple[QualityScore, ...]] = lambda _: (GOOD,)
        self.closed = False

    async def scores(self, account: str) -> tuple[QualityScore, ...]:
        """Note when it is asked, and answer."""
        self.asked.append((asyncio.get_running_loop().time(), account))
        return self.answer(account)

    async def close(self) -> None:
        """Note it."""
        self.closed = True


def watching(
    given: Settings, then: Callable[[QualityWatch, FakeReads, list[Statistics]], Awaitable[None]]
) -> FakeReads:
    """Run `then` beside a watch, whose process has the last of these figures."""
    reads, figures = FakeReads(), [ALONE]

    async def beside() -> None:
        watch = QualityWatch(given, cast(AccountReads, reads), lambda: figures[-1])
        await then(watch, reads, figures)
        await watch.close()
        await asyncio.sleep(HOUR * 24)

    run(beside())
    assert reads.closed
    return reads


def no_answer(_: str) -> tuple[QualityScore, ...]:
    """Answer nothing."""
    raise NotKnown("the token is refused")


def test_it_asks_a_few_times_a_day_and_not_at_once(tmp_path: Path) -> None:
    """Some minutes after the start, then every few hours, about each account; once closed, never again."""

    async def a_day(watch: QualityWatch, reads: FakeReads, _: Any) -> None:
        begun = asyncio.get_running_loop().time()
        await asyncio.sleep(60)
        assert (reads.asked, watch.quality().accounts[0].at) == ([], None)
        await asyncio.sleep(HOUR)
        assert [account for _, account in reads.asked] == [ACCOUNT, OTHER]
        assert 120 <= reads.asked[0][0] - begun <= 300
        assert [one.scores for one in watch.quality().accounts] == [(GOOD,), (GOOD,)]
        await asyncio.sleep(23 * HOUR)

    reads = watching(settings(tmp_path, PINTEREST_EXTRA_AD_ACCOUNT_IDS=OTHER), a_day)
    times = [at for at, account in reads.asked if account == ACCOUNT]
    assert 4 <= len(times) <= 6
    assert len({after - before for before, after in pairwise(times)}) > 1, "at random"


def test_a_failure_is_logged_once_and_the_last_answer_stays(tmp_path: Path) -> None:
    """It is asked again after an hour or so; the next failure after an answer is logged again."""

    async def a_day(watch: QualityWatch, reads: FakeReads, _: Any) -> None:
        await asyncio.sleep(HOUR)
        for _round in range(2):
            reads.answer = no_answer
            await asyncio.sleep(13 * HOUR)
            [one] = watch.quality().accounts
            assert (one.problem, one.scores) == ("the token is refused", (GOOD,))
            reads.answer = lambda _: (GOOD,)
            await asyncio.sleep(2 * HOUR)
            assert watch.quality().accounts[0].problem is None

    with capture_logs() as lines:
        watching(settings(tmp_path), a_day)
    expected = {"event": "event_quality_not_known", "log_level": "warning", "account": ACCOUNT}
    assert lines == [{**expected, "reason": "the token is refused"}] * 2


@pytest.mark.parametrize(
    ("more", "compared"),
    [
        ({}, True),
        ({"PINTEREST_TEST_MODE": "true"}, False),
        ({"PINSTREAM_KEY_STORE": "redis://localhost"}, False),
    ],
)
def test_a_day_as_all_of_the_group_is_compared(tmp_path: Path, more: dict[str, str], compared: bool) -> None:
    """The time before the answer counts; never in test mode, or where members are not counted."""

    async def two_days(watch: QualityWatch, _: FakeReads, figures: list[Statistics]) -> None:
        await asyncio.sleep(20 * HOUR)
        assert (watch.quality().whole_for or 0) < 20 * HOUR
        await asyncio.sleep(18 * HOUR)
        whole = watch.quality().whole_for
        assert whole is None if not compared else (whole or 0) > 24 * HOUR
        for other in (replace(ALONE, quota_members=2), replace(ALONE, joined=False)):
            figures.append(other)
            await asyncio.sleep(60)
            assert not watch.quality().whole_for
            figures.append(ALONE)
            await asyncio.sleep(60)
            assert not watch.quality().whole_for, "the last answer is older than that"

    watching(settings(tmp_path, **more), two_days)


async def test_only_a_member_with_the_token_asks_and_it_shows_no_secret(tmp_path: Path) -> None:
    """Without it no client, no task, and an empty figure. With it, it begins when the parts are opened, and ends with
    them; no figure has the token."""
    (tmp_path / "token").write_text("pina_READ\n")
    assert account_reads(settings(tmp_path)) is None
    for more, accounts in (({}, []), ({"PINTEREST_READ_TOKEN_FILE": str(tmp_path / "token")}, [ACCOUNT])):
        given = settings(tmp_path, **more)
        async with member(given) as one:
            await one.open()
            assert (one.quality is not None) == bool(more)
            assert [known.account for known in one.statistics().event_quality.accounts] == accounts
            assert "pina_READ" not in repr((given, one.statistics()))
    assert one.quality is not None
    assert one.quality._task.done()


def test_a_token_file_that_is_missing_is_said_at_the_start(tmp_path: Path) -> None:
    """As of every secret."""
    with pytest.raises(SettingsError, match="PINTEREST_READ_TOKEN_FILE"):
        settings(tmp_path, PINTEREST_READ_TOKEN_FILE=str(tmp_path / "none"))
