"""The page: one file that needs nothing else, and what a browser makes of it.

The tests with a browser run in headless Chromium, and are skipped by name where there is none.
"""

from __future__ import annotations

import asyncio
import html
import os
import re
import shutil
import signal
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from consumer.core.statistics import Counters, Statistics
from tests.web.building import (
    INFO,
    account,
    busy,
    empty,
    guarded,
    halted,
    idle,
    partition,
    serving,
    statistics,
    throttled,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--dump-dom",
)
_PATIENCE = 60.0
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser (chromium)")


def page() -> str:
    """The file as it is served."""
    return files("consumer.web").joinpath("page.html").read_text("utf-8")


async def dom(url: str, profile: Path, seconds: float = 1.5) -> str:
    """The page's DOM after so many seconds of the page's own time; no complaint on the console."""
    assert CHROMIUM is not None
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *FLAGS, f"--user-data-dir={profile}", f"--virtual-time-budget={seconds * 1000:.0f}", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_PATIENCE):
            out, errors = await process.communicate()
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    complaints = [line for line in errors.decode().splitlines() if "CONSOLE" in line and "500" not in line]
    assert complaints == []
    return out.decode()


def text_of(markup: str, of_id: str) -> str:
    """What stands in the element with this id, up to the next one with an id, in one line."""
    _, _, after = markup.partition(f'id="{of_id}"')
    shown = re.split(r'\bid="|<script|<h2', after.partition(">")[2])[0]
    return " ".join(html.unescape(re.sub(r"<[^>]*>?", " ", shown)).split())


async def see(scene: Callable[[], Statistics], profile: Path, **info: Any) -> str:
    """The DOM that a browser has of a scene."""
    async with serving(scene) as served:
        served.shown.info = {**INFO, "process": {**INFO["process"], **info}}
        return await dom(served.url, profile)


# -- the file


def test_page_is_one_small_file_that_asks_nobody() -> None:
    """No library, no font, no picture from anywhere: the page works without the internet."""
    assert len(page().encode()) < 20_000
    assert re.findall(r"https?://", page()) == []
    assert re.findall(r"(?:src|href)=\"([^\"]*)\"", page()) == ["data:,", "/status", "/status", "/metrics"]
    assert re.findall(r"fetch\(\"([^\"]*)\"", page()) == ["/status"]


def test_page_puts_in_text_and_never_markup() -> None:
    """What comes from topics or from the API's messages cannot become markup; nor is there any inline handler."""
    for way in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "style=",
        "javascript:",
    ):
        assert way not in page()
    assert re.findall(r"<[^>]*\son\w+=", page()) == []


def test_page_names_its_language_its_regions_and_its_live_texts() -> None:
    """Readable by a screen reader and on a telephone."""
    assert '<html lang="en">' in page()
    assert 'name="viewport"' in page()
    assert page().count("<section aria-labelledby=") == page().count("<section")
    assert page().count('role="status"') == 2
    assert "prefers-color-scheme: dark" in page()


# -- in a browser


@browser
async def test_busy_page_shows_the_figures(tmp_path: Path) -> None:
    """All that /status has is there, in words, and the ledger is seen to add up."""
    seen = await see(busy, tmp_path)
    assert text_of(seen, "live") == "live"
    assert text_of(seen, "state") == "Working: 31,866 records to go."
    ledger = text_of(seen, "ledger")
    for text in ("read 5,207,980", "delivered 5,120,000", "dead letters 176", "open, under way 6,600"):
        assert text in ledger
    assert "The ledger adds up." in text_of(seen, "sum")
    assert "812 records let go unsettled" in text_of(seen, "sum")
    assert text_of(seen, "freshness").startswith("96.00 % Age at delivery: half within 5 s")
    assert "orders [3] 14,283 1,650 1,200,348" in text_of(seen, "partitions")
    trouble = text_of(seen, "trouble")
    for text in ("dead letter, convert no_identity 41", "sent again timeout 2", "'em' is not hashed 9"):
        assert text in trouble
    assert "Reads orders, ^shop\\..* as group pinstream" in text_of(seen, "process")
    assert 'id="mode" class="warn" hidden=""' in seen


@browser
@pytest.mark.parametrize(
    ("scene", "state", "destination"),
    [
        (
            halted,
            "Pinterest refuses us: intake has stopped.",
            "refuses us : the access token is refused (HTTP 401",
        ),
        (
            guarded,
            "Intake has stopped: of the latest 2,000 records of orders 1,640 would be dead letters, mostly convert",
            "takes events 0 calls under way",
        ),
        (throttled, "Waiting until Pinterest takes calls again.", "asks us to wait for 37 s more"),
        (empty, "No partitions assigned", "nothing sent yet"),
        (idle, "Caught up: nothing is waiting.", "takes events 0 calls under way, 0 events waiting"),
    ],
)
async def test_each_state_is_said_in_words(
    scene: Callable[[], Statistics], state: str, destination: str, tmp_path: Path
) -> None:
    """A person who opens the page reads first how things are, and what is done about it."""
    seen = await see(scene, tmp_path)
    assert text_of(seen, "live") == "live"
    assert text_of(seen, "state").startswith(state)
    assert destination in text_of(seen, "destination")


@browser
async def test_empty_page_says_so_everywhere(tmp_path: Path) -> None:
    """No bare table, no NaN, no null: words where there is nothing yet. Test mode shows."""
    seen = await see(empty, tmp_path, test_mode=True)
    assert text_of(seen, "freshness") == "nothing delivered yet"
    assert text_of(seen, "partitions") == "none assigned"
    assert text_of(seen, "trouble") == "nothing so far"
    assert text_of(seen, "mode") == "test mode: checked, not recorded"
    assert 'id="mode" class="warn">' in seen
    assert re.findall(r"NaN|undefined|null|Infinity", seen.partition("<script>")[0]) == []


@browser
async def test_one_refused_account_of_two_is_told_apart(tmp_path: Path) -> None:
    """The others go on, and the page says so. An age beyond all buckets has words too."""

    def scene() -> Statistics:
        return statistics(
            partition(open=3, lag=3), accounts=[account(), account("7", "halted", queued=3)], ages=[10**7]
        )  # fmt: skip

    seen = await see(scene, tmp_path)
    assert (
        text_of(seen, "state") == "Pinterest refuses one of the accounts; the others go on. Nothing is lost."
    )
    assert "half beyond 7 d" in text_of(seen, "freshness")


@browser
async def test_a_message_of_the_api_stays_text(tmp_path: Path) -> None:
    """Markup in what others wrote is shown as it is written, and does nothing."""
    counters = Counters()
    counters.api_warnings["<img src=x onerror=alert(1)>"] = 3
    seen = await see(lambda: statistics(partition(), counters=counters), tmp_path)
    assert "&lt;img src=x onerror=alert(1)&gt;" in seen
    assert "<img" not in seen


@browser
async def test_figures_that_are_old_are_said_to_be_old(tmp_path: Path) -> None:
    """No answer any more: the last figures stay, faded, and nobody takes them for new."""
    async with serving(idle) as served:
        served.shown.answers_most = 1
        seen = await dom(served.url, tmp_path, seconds=4)
        assert served.shown.asked > 1
    assert text_of(seen, "live") == "no answer: these figures are old"
    assert '<body class="old">' in seen
    assert "delivered 5,000" in text_of(seen, "ledger")
