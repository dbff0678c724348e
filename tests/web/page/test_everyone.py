"""The page for everyone: views by address and keyboard, plots by mouse, keyboard and ear; contrast, sizes, names."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.async_api import Page

from tests.web.building import UNIX
from tests.web.page import scenes
from tests.web.page.browser import (
    VIEWS,
    Visit,
    accessible,
    check,
    fits,
    live,
    needs_browser,
    shoot,
    shows,
    stand,
    text,
    turn,
)

pytestmark = [needs_browser, pytest.mark.asyncio(loop_scope="module")]

MAX_SCREENS = {"wide": 2, "tablet": 4, "phone": 4}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["wide", "tablet", "phone"])
async def test_each_view_is_for_everyone(size: str, scheme: Any, visit: Visit) -> None:
    """At each size, in light and dark: axe-core finds nothing, nothing sticks out, the overview is short."""
    async with check(visit, scenes.crowd(), scenes.history(), size, color_scheme=scheme) as (_, shown):
        screens = await shown.evaluate("document.documentElement.scrollHeight / innerHeight")
        assert screens <= MAX_SCREENS[size]
        for view in VIEWS:
            await turn(shown, view)
            await accessible(shown)
            await fits(shown)
            assert (
                await shown.locator(
                    "th:not([scope]), svg:not([aria-hidden]):not([role]), [style]:not([style=''])"
                ).count()
                == 0
            )
            await shoot(shown, f"{view}-{size}-{scheme}")


async def current(shown: Page) -> str:
    """The view that the page shows, which is one only, and says so to a screen reader."""
    seen = await shown.eval_on_selector_all(
        ".view", "all => all.filter(e => e.checkVisibility()).map(e => e.id)"
    )
    assert await shown.eval_on_selector_all("nav [aria-current=page]", "all => all.map(e => e.hash)") == [
        f"#{seen[0]}"
    ]
    assert len(seen) == 1
    return str(seen[0])


async def test_a_view_has_an_address(visit: Visit) -> None:
    """It opens by its address, and by that of what is in it; the browser goes back; other addresses change nothing."""
    async with check(visit, scenes.full(), scenes.history(), view="quality") as (_, shown):
        assert await current(shown) == "quality"
        await shown.evaluate("location.hash = 'h-partitions'")
        await shown.wait_for_selector("#delivery:visible")
        assert await current(shown) == "delivery"
        assert await shown.evaluate(
            "document.querySelector('#h-partitions').getBoundingClientRect().top < innerHeight"
        )
        await shown.evaluate("location.hash = 'main'")
        assert await current(shown) == "delivery"
        await shown.go_back()
        await shown.go_back()
        await shown.wait_for_selector("#quality:visible")
        assert await current(shown) == "quality"


async def test_the_page_can_be_used_with_the_keyboard_alone(visit: Visit) -> None:
    """Tab reaches in order: the skip link, the views, the period, what is in the view, the links. Enter turns to a view
    and moves the focus there."""
    async with check(visit, scenes.full(), scenes.history()) as (_, shown):
        for view, plots in (("overview", 4), ("delivery", 2), ("quality", 2), ("refusals", 0)):
            reached: list[str] = []
            await shown.focus(".skip")
            while reached[-1:] != ["/metrics"] and len(reached) < 50:
                await shown.keyboard.press("Tab")
                reached.append(
                    await shown.evaluate(
                        "(e => e.className?.baseVal || e.className || e.getAttribute('href') || e.value || e.localName)"
                        "(document.activeElement)"
                    )
                )
                assert await shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            assert reached[:4] == ["#overview", "#delivery", "#quality", "#refusals"], view
            assert "3600" in reached
            assert reached.count("canvas") == plots
            if view != VIEWS[-1]:
                await shown.focus(f"nav a[href='#{VIEWS[VIEWS.index(view) + 1]}']")
                await shown.keyboard.press("Enter")
                await shown.wait_for_function("view => view !== document.body.dataset.view", arg=view)
                assert await shown.evaluate("document.activeElement.id") == f"h-{await current(shown)}"


# -- plots


async def test_plots_have_axes_gaps_one_crosshair_and_a_table(visit: Visit) -> None:
    """Unknown values leave a gap, which is marked. The crosshair stands at the same time in all plots, and is moved by
    mouse and keyboard; a screen reader hears the values."""
    async with check(visit, scenes.full(), scenes.history()) as (_, shown):
        rate, lag = (shown.locator(f"[data-plot={name}] .canvas") for name in ("rate", "lag"))
        curve = await rate.locator(".curve").first.get_attribute("d")
        assert curve is not None
        assert curve.count("M") == 2
        assert await rate.locator(".gap").count() == 1
        assert {"1,000", "22:00"} <= set(await rate.locator("text").all_text_contents())
        assert re.search(r"settled [\d,]+/s .* latest$", await text(shown, "[data-plot=rate] .keys"))
        await rate.hover(position={"x": 300, "y": 60})
        times = []
        for name in ("rate", "lag", "within"):
            await shows(shown, "at 21:4", f"[data-plot={name}] .keys")
            times.append((await text(shown, f"[data-plot={name}] .keys")).split(" at ")[1])
        assert len(set(times)) == 1
        assert await shown.locator("#overview .cursor").count() == 4
        await shown.mouse.move(0, 0)
        await shows(shown, "latest", "[data-plot=rate] .keys")
        await lag.focus()
        for _ in range(3):
            await shown.keyboard.press("ArrowLeft")
        await shows(shown, "at 22:12:50", "[data-plot=rate] .keys")
        said = await rate.get_attribute("aria-valuetext")
        assert said is not None
        assert re.fullmatch(r"22:12:50: settled [\d,]+/s, delivered [\d,]+/s, dead letters [\d.]+/s", said)
        await shown.keyboard.press("Escape")
        await shows(shown, "latest", "[data-plot=rate] .keys")
        await turn(shown, "delivery")
        await shown.click("[data-plot=behind] summary")
        table = await text(shown, "[data-plot=behind] details table")
        assert table.startswith("time oldest record 22:13:20 1.5 s")
        assert "unknown" in table


PERIODS = {
    "900": ("last 15 minutes", {"22:00", "22:05", "22:10"}),
    "3600": ("last hour", {"21:20", "22:00"}),
    "21600": ("last 6 hours", {"17:00", "22:00"}),
    "86400": ("last day", {"00:00", "12:00"}),
}


async def test_the_reader_chooses_the_period(visit: Visit) -> None:
    """From 15 minutes to a day, in all plots."""
    async with check(visit, scenes.full(), scenes.history()) as (_, shown):
        for period, (words, ticks) in PERIODS.items():
            await shown.check(f"input[value='{period}']")
            for name in ("rate", "calls"):
                canvas = shown.locator(f"#overview [data-plot={name}] .canvas")
                assert f"over the {words}" in str(await canvas.get_attribute("aria-label"))
                assert ticks <= set(await canvas.locator("text").all_text_contents())


async def test_a_restart_is_marked_and_what_was_before_it_stays(visit: Visit) -> None:
    """The history of a process ends with it. The tab keeps it, over a reload of the page as well."""
    later = scenes.history()
    for step in later["steps"]:
        step["series"] = {name: values[-3:] for name, values in step["series"].items()}
    async with check(visit, scenes.full(), scenes.history()) as (server, shown):
        assert await shown.locator(".start").count() == 0
        server.history, started = later, {**server.status["process"], "started": UNIX - 40}
        server.status["process"] = started
        for _ in range(2):
            await shown.reload()
            await live(shown)
            await shown.wait_for_selector("[data-plot=rate] .start", state="attached")
            ticks = await shown.locator("[data-plot=rate] .canvas text").all_text_contents()
            assert {"started", "21:20"} <= set(ticks)


async def test_a_plot_without_anything_to_show_says_why(visit: Visit) -> None:
    """Just started; or there are points without values, because nothing was delivered or lag is unknown."""
    history: dict[str, Any] = {"steps": []}
    async with check(visit, scenes.full(), history) as (_, shown):
        await shows(shown, "No points yet: the first ones come within half a minute.", "[data-plot=rate]")
        assert await shown.locator(".canvas").count() == 0
        await shown.check("input[value='86400']")
        await shows(shown, "No points yet: the first ones come within a few minutes.", "[data-plot=rate]")
    history = scenes.history()
    for step in history["steps"]:
        for name in ("within_hour", "call_p50", "call_p95", "lag"):
            step["series"][name] = [None] * step["points"]
    async with check(visit, scenes.full(), history) as (_, shown):
        assert await text(shown, "[data-plot=within] .none") == "Nothing was delivered in the last hour."
        assert (
            await text(shown, "#overview [data-plot=calls] .none") == "No call was answered in the last hour."
        )
        assert await text(shown, "[data-plot=lag] .none") == "Unknown in the last hour."


# -- what the reader takes along


async def test_a_command_is_copied_by_a_click(visit: Visit) -> None:
    """For each reason of dead letters: the command that lists them, and the one that redrives them."""
    async with check(visit, scenes.full(), view="refusals") as (_, shown):
        command = "pinstream dead-letters redrive --stage convert --code no_identity"
        button = shown.get_by_role("button", name=f"Copy: {command}")
        await button.focus()
        await shown.keyboard.press("Enter")
        await shows(shown, "Copied", "#reasons")
        assert await shown.evaluate("getSelection().toString()") == command
        await shown.evaluate(
            "() => { const field = document.createElement('textarea'); document.body.append(field); field.focus() }"
        )
        await shown.keyboard.press("Control+V")
        assert await shown.input_value("textarea") == command


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
            for view in VIEWS:
                await turn(shown, view)
                await fits(shown)


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
