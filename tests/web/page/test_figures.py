"""Figures are whole: however long they are and however narrow the screen, none is broken or sticks out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.async_api import Page

from tests.web.page import scenes
from tests.web.page.browser import (
    VIEWS,
    Visit,
    check,
    fits,
    needs_browser,
    shoot,
    shows,
    text,
    turn,
)

pytestmark = [needs_browser, pytest.mark.asyncio(loop_scope="module")]

BROKEN = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), broken = [];
  let seen = 0;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (["SCRIPT", "STYLE", "NOSCRIPT"].includes(node.parentElement.localName.toUpperCase())) continue;
    for (const figure of node.data.matchAll(/\\d[\\d.,]*/g)) {
      const range = document.createRange();
      range.setStart(node, figure.index);
      range.setEnd(node, figure.index + figure[0].length);
      const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
      if (lines.size) seen += 1;
      if (lines.size > 1) broken.push(`${figure[0]} on ${lines.size} lines in ${node.parentElement.outerHTML.slice(0,
      80)}`);
    }
  }
  return broken.concat(seen < 20 ? [`only ${seen} figures`] : []);
}"""
"""Every figure that has more than one line box."""

OVERFLOWING = """() => [...document.querySelectorAll("header, header *, main *, footer *")].filter(one => {
  if (one.closest("svg, .unseen, thead") || getComputedStyle(one).display === "inline") return false;
  return one.scrollWidth > one.clientWidth + 1 && !one.matches(".wide") && one.clientWidth > 0;
}).map(one => `${one.scrollWidth} in ${one.clientWidth}: ${one.outerHTML.slice(0, 90)}`)"""
"""Every box whose content does not fit, except those that scroll."""

OUTSIDE = """() => {
  const out = [];
  for (const dd of document.querySelectorAll("#tiles dd, #ledger td, #ledger th, .read *, #partitions td, .big")) {
    const range = document.createRange();
    range.selectNodeContents(dd);
    const box = dd.parentElement.getBoundingClientRect(), within = range.getBoundingClientRect();
    if (within.width && (within.left < box.left - 1 || within.right > box.right + 1)) out.push(dd.outerHTML);
  }
  return out;
}"""
"""Every figure that reaches beyond its box."""

CANONICAL = (
    "page_visit", "add_to_cart", "view_category", "search", "signup", "initiate_checkout", "checkout",
    "add_payment_info", "app_install", "watch_video", "add_to_wishlist", "lead", "subscribe",
)  # fmt: skip
"""The event names that the packaged mapping makes."""


async def whole(shown: Page) -> None:
    """No figure is broken, none sticks out, and the page does not scroll sideways."""
    assert await shown.evaluate(BROKEN) == []
    assert await shown.evaluate(OVERFLOWING) == []
    assert await shown.evaluate(OUTSIDE) == []
    await fits(shown)


@pytest.mark.parametrize("size", ["laptop", "tablet", "phone"])
@pytest.mark.parametrize(
    ("scene", "history"),
    [(scenes.full, scenes.history), (scenes.enormous, scenes.enormous_history)],
    ids=["usual", "enormous"],
)
async def test_no_figure_is_broken(
    scene: Callable[[], dict[str, Any]],
    history: Callable[[], dict[str, Any]],
    size: str,
    visit: Visit,
    request: pytest.FixtureRequest,
) -> None:
    """Up to twelve digits, at 1280, 1024 and 390 pixels; tables of the plots as well."""
    async with check(visit, scene(), history(), size=size) as (_, shown):
        # The rate of now is the history's, until there are two looks at the ledger.
        await shown.wait_for_function(
            "() => /\\d\\s*records/.test(document.querySelector('#tiles dd').innerText)"
        )
        for view in VIEWS:
            await turn(shown, view)
            await whole(shown)
            await shoot(shown, f"{view}-{request.node.callspec.id}")
            await shown.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            await whole(shown)


async def test_coverage_of_all_canonical_event_names_fits_on_a_laptop(visit: Visit) -> None:
    """The thirteen names of the packaged mapping fit side by side at 1280 pixels, with nothing to scroll."""
    made = scenes.full()
    one = {
        **made["coverage"]["hour"]["page_visit"],
        "events": 13_160,
        "share": dict.fromkeys(scenes.IDS, 1.0),
    }
    made["coverage"] = {**made["coverage"], "hour": dict.fromkeys(CANONICAL, one)}
    async with check(visit, made, size="laptop", view="quality") as (_, shown):
        assert await shown.locator("#coverage thead th").count() == 2 + len(CANONICAL)
        widths = "one => [one.scrollWidth, one.clientWidth]"
        assert len(set(await shown.eval_on_selector(".wide:has(#coverage)", widths))) == 1


@pytest.mark.parametrize("size", ["wide", "tablet", "phone"])
async def test_a_figure_of_any_length_stands_on_one_line(size: str, visit: Visit) -> None:
    """Up to the sixteen digits of the largest safe integer: a longer figure has a smaller font."""
    async with check(visit, scenes.full(), scenes.history(), size=size) as (server, shown):
        for figure in (9_999, 9_999_999_999, 9_007_199_254_740_991):
            nothing = dict.fromkeys(server.status["ledger"], 0)
            server.report(ledger={**nothing, "read": figure, "dead_lettered": figure})
            await shows(shown, f"{figure:,}", "#tiles")
            assert await text(shown, "#read b") == f"{figure:,}"
            await whole(shown)
            sizes = await shown.eval_on_selector_all(
                ".big", "all => all.map(one => parseFloat(getComputedStyle(one).fontSize))"
            )
            assert min(sizes) >= 11
