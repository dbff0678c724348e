"""``python -m tests.web.page.picture``: make the pictures of the page in the README and in docs/operate.md.

It is the page as it is now, of a busy member with something in every panel (`scenes.full`, with the figures of a
member of its pace), in light colours: the overview in docs/page.png, the data's quality in docs/page-quality.png. Run
it whenever the page changes to the eye. It needs Chromium.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from playwright.async_api import async_playwright

from consumer.engine.figures.value import ValueSnapshot, Worth
from consumer.engine.model import VALUE_PARTS
from consumer.web.status import document_of
from tests.web.page import scenes
from tests.web.page.browser import CHROMIUM, FLAGS, live, opened, shows, stand

DOCS = Path(__file__).parents[3] / "docs"
PICTURES = {"overview": "page.png", "quality": "page-quality.png"}


def scene() -> dict[str, Any]:
    """`scenes.full` of a member that delivers a thousand events a second: figures that appear twice agree."""
    made = scenes.full()
    made["counts"]["topics_made_anew"] = {}
    made["coverage"] = scenes.coverage(58)
    delivered = made["ledger"]["delivered"]
    hour = sum(one["events"] for one in made["coverage"]["hour"].values())
    freshness = made["freshness"]
    ages = {**freshness["hour"], "within_one_hour": 0.9934, "age_p99": 1_800.0}
    made["freshness"] = {
        **freshness,
        "delivered": delivered,
        "within_one_hour": 0.9931,
        "hour": {**ages, "delivered": hour},
        "day": {**ages, "delivered": delivered},
    }
    made["counts"] |= {
        "calls": 5_214,
        "events_sent": delivered + 12_400,
        "bytes_sent": (delivered + 12_400) * 1_031,
    }
    for one, behind in zip(made["partitions"], (40, 310, 120, 200), strict=True):
        one["lag"] = one["ledger"]["open"] + behind
        one["end"] = one["committed"] + one["lag"]
    made["oldest_open"] = scenes.oldest("batch", max(one["lag_seconds"] for one in made["partitions"]))
    orders = {
        ("add_to_cart", "EUR"): (241_300, 16_402_118), ("add_to_cart", "USD"): (113_660, 8_021_377),
        ("checkout", "EUR"): (47_511, 4_177_909), ("checkout", "USD"): (22_321, 2_110_455),
    }  # fmt: skip
    worth = {names: Worth(events, value * VALUE_PARTS) for names, (events, value) in orders.items()}
    quiet = ("certificates", "members_differ", "members_differ_in_words", "outside_ledger", "schema_drift")
    more: dict[str, Any] = {name: [] for name in quiet}
    return made | more | {"delivered_value": document_of(ValueSnapshot({}, worth, worth))}


def history() -> dict[str, Any]:
    """`scenes.history` that ends where `scene` is, and whose outage is no worse than its last hour."""
    made = scenes.history()
    for step in made["steps"]:
        series = step["series"]
        series["lag"] = [None if one is None else one + 6_000 for one in series["lag"]]
        series["within_hour"] = [None if one is None else 1 - (1 - one) / 10 for one in series["within_hour"]]
    return made


async def draw(to: Path = DOCS) -> None:
    """Write the pictures into this folder."""
    async with async_playwright() as playwright, stand(scene(), history()) as server:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for view, name in PICTURES.items():
            async with opened(browser, f"{server.url}#{view}", reduced_motion="reduce") as shown:
                await live(shown)
                await shown.wait_for_selector(f"#{view} .canvas")
                if view == "overview":
                    await shows(shown, "1,068", "#tiles")  # the rate, which comes with the history
                await shown.screenshot(path=to / name, full_page=True)
        await browser.close()


if __name__ == "__main__":
    asyncio.run(draw())
