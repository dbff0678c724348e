"""The page for everyone: plots by mouse, keyboard and ear; contrast, sizes, names, motion."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.web.building import halted
from tests.web.page import scenes
from tests.web.page.browser import (
    CONTRAST,
    SIZES,
    Visit,
    check,
    fits,
    live,
    needs_browser,
    shoot,
    shows,
    stand,
    text,
    visit,
)

__all__ = ["visit"]  # a fixture
pytestmark = [needs_browser, pytest.mark.asyncio(loop_scope="module")]


# -- plots


async def test_plots_have_axes_gaps_a_cursor_and_a_table(visit: Visit) -> None:
    """Unknown values leave a gap in the curve; the value at the cursor can be read with mouse, keyboard and screen
    reader. The plots cover the last day on demand."""
    async with check(visit, scenes.full(), scenes.history()) as (_, shown):
        canvas = shown.locator("#plot-rate .canvas")
        await canvas.wait_for()
        curve = await canvas.locator(".curve").first.get_attribute("d")
        assert curve is not None
        assert curve.count("M") == 2
        ticks = await canvas.locator("text").all_text_contents()
        assert "1,000" in ticks
        assert "22:00" in ticks
        keys = shown.locator("#plot-rate .keys")
        assert re.search(r"settled [\d,]+/s .* latest$", " ".join((await keys.inner_text()).split()))
        await canvas.hover(position={"x": 300, "y": 60})
        await shows(shown, "at 21:4", "#plot-rate .keys")
        await shown.mouse.move(0, 0)
        await shows(shown, "latest", "#plot-rate .keys")
        await canvas.focus()
        for _ in range(3):
            await shown.keyboard.press("ArrowLeft")
        await shows(shown, "at 22:12:50", "#plot-rate .keys")
        said = await canvas.get_attribute("aria-valuetext")
        assert said is not None
        assert re.fullmatch(r"22:12:50: settled [\d,]+/s, delivered [\d,]+/s, dead letters [\d.]+/s", said)
        await shown.keyboard.press("Escape")
        await shows(shown, "latest", "#plot-rate .keys")
        await shown.click("#plot-behind summary")
        table = await text(shown, "#plot-behind details table")
        assert table.startswith("time oldest record 22:13:20 1.5 s")
        assert "unknown" in table
        await shown.check("input[value=day]")
        assert "over the last day" in str(await canvas.get_attribute("aria-label"))
        assert {"00:00", "12:00"} <= set(await canvas.locator("text").all_text_contents())


async def test_without_a_history_there_is_a_word_instead_of_a_plot(visit: Visit) -> None:
    """Just started: a sentence and no empty axes."""
    async with check(visit, scenes.full(), {"steps": []}) as (_, shown):
        await shows(shown, "No points yet: the first ones come within half a minute.", "#plot-rate")
        assert await shown.locator(".canvas").count() == 0
        await shown.check("input[value=day]")
        await shows(shown, "No points yet: the first ones come within a few minutes.", "#plot-rate")


async def test_a_plot_without_anything_to_show_says_why(visit: Visit) -> None:
    """There are points without values, because nothing was delivered or lag is unknown: the page says which."""
    history = scenes.history()
    for step in history["steps"]:
        for name in ("within_hour", "age_p50", "age_p95", "age_p99", "lag"):
            step["series"][name] = [None] * step["points"]
    async with check(visit, scenes.full(), history) as (_, shown):
        await shown.wait_for_selector("#plot-rate .canvas")
        assert await text(shown, "#plot-age .none") == "Nothing was delivered in the last hour."
        assert await text(shown, "#plot-within .none") == "Nothing was delivered in the last hour."
        assert await text(shown, "#plot-lag .none") == "Unknown in the last hour."


# -- for everyone


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scene", [scenes.full, scenes.lagging, lambda: scenes.scene(halted)])
async def test_every_text_stands_out_from_what_is_behind_it(
    scene: Callable[[], dict[str, Any]], size: str, scheme: Any, visit: Visit
) -> None:
    """A contrast of at least 4.5 to 1, computed for each text, in light and dark and at each size."""
    async with check(visit, scene(), scenes.history(), size, color_scheme=scheme) as (_, shown):
        await shown.wait_for_selector("#plot-rate .canvas")
        assert await shown.evaluate(CONTRAST) == []
        await fits(shown)
        if scene is scenes.full:
            await shoot(shown, f"{scheme}-{size}")


async def test_long_names_do_not_break_the_layout(visit: Visit) -> None:
    """Topics of 249 letters, messages without a blank and figures of sixteen digits fit on a phone."""
    long = scenes.full()
    name = "t" * 249
    long["process"] = {**long["process"], "topics": [name], "group": name}
    long["partitions"] = [{**one, "topic": name, "lag": 9_007_199_254_740_991} for one in long["partitions"]]
    long["latest_dead_letters"] = [
        {**scenes.letters(1)[0], "topic": name, "message": "m" * 500, "code": "c" * 200}
    ]
    long["ledger"] = dict.fromkeys(long["ledger"], 0) | {
        "read": 9_007_199_254_740_991,
        "delivered": 9_007_199_254_740_991,
    }
    for size in ("phone", "tablet"):
        async with check(visit, long, scenes.history(), size=size) as (_, shown):
            await fits(shown)


async def test_the_page_can_be_used_with_the_keyboard_alone(visit: Visit) -> None:
    """Tab reaches in order: the skip link, the navigation, the choice, each plot, what scrolls, the links."""
    async with check(visit, scenes.full(), scenes.history()) as (_, shown):
        await shown.wait_for_selector("#plot-rate .canvas")
        reached = []
        for _ in range(40):
            await shown.keyboard.press("Tab")
            reached.append(
                await shown.evaluate(
                    "(e => e.className?.baseVal || e.className || e.getAttribute('href') || e.value || e.localName)"
                    "(document.activeElement)"
                )
            )
            assert await shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            if reached[-1] == "/metrics":
                break
        assert reached[:6] == ["skip", "#records", "#pace", "#quality", "#refusals", "hour"]
        assert reached.count("canvas") == 6
        assert reached[-1] == "/metrics"


async def test_every_control_table_and_graphic_has_a_name(visit: Visit) -> None:
    """Every control, table, region and graphic is named; tables have headers with their scope; no inline style."""
    async with check(visit, scenes.full(), scenes.history()) as (_, shown):
        await shown.wait_for_selector("#plot-rate .canvas")
        nameless = await shown.evaluate(
            """() => [...document.querySelectorAll(
              "input, button:not([hidden]), section, figure, [role=region], [role=slider], table, nav")]
            .filter(e => !e.closest("details")).filter(e => {
              const by = e.getAttribute("aria-labelledby");
              const said = by ? document.getElementById(by)?.textContent : e.getAttribute("aria-label");
              return !(said || e.labels?.[0]?.textContent || e.localName === "button" && e.textContent);
            }).map(e => e.outerHTML.slice(0, 100))"""
        )
        assert nameless == []
        assert await shown.locator("th:not([scope])").count() == 0
        assert await shown.locator("svg:not([aria-hidden]):not([role])").count() == 0
        assert await shown.locator("[style]").count() == 0
        levels = await shown.eval_on_selector_all("h1,h2,h3,h4", "all => all.map(e => +e.localName[1])")
        assert levels[0] == 1
        assert all(later - before <= 1 for before, later in itertools.pairwise(levels))


async def test_nothing_moves_with_reduced_motion(visit: Visit) -> None:
    """The pulsing dot of a live page stands still."""
    async with stand(scenes.full()) as server:
        for wish, animation in (("reduce", "none"), ("no-preference", "beat")):
            async with visit(server.url, reduced_motion=wish) as shown:
                await live(shown)
                assert (
                    await shown.evaluate("getComputedStyle(document.querySelector('.dot')).animationName")
                    == animation
                )
