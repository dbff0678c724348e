"""``python -m tests.web.picture``: make docs/page.png, the picture of the page in the README, anew.

It is the page as it is now, of a busy member with something in every panel (`page_scenes.full`), in light colours, down
to the end of its second section. Run it whenever the page changes to the eye. It needs Chromium.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from playwright.async_api import async_playwright

from tests.web import page_scenes as scenes
from tests.web.browser import CHROMIUM, FLAGS, live, opened, shows, stand

PICTURE = Path(__file__).parents[2] / "docs" / "page.png"
_MARGIN = 24


async def draw(to: Path = PICTURE) -> None:
    """Write the picture."""
    async with async_playwright() as playwright, stand(scenes.full(), scenes.history()) as server:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        async with opened(browser, server.url, reduced_motion="reduce") as shown:
            await live(shown)
            await shown.wait_for_selector("#plot-rate .canvas")
            await shows(shown, "1,068", "#tiles")  # the rate, which comes with the history
            size = await shown.evaluate(
                "() => [innerWidth, Math.round(document.getElementById('pace').getBoundingClientRect().bottom)]"
            )
            clip = {"x": 0, "y": 0, "width": size[0], "height": size[1] + _MARGIN}
            await shown.screenshot(path=to, full_page=True, clip=clip)  # type: ignore[arg-type]
        await browser.close()


if __name__ == "__main__":
    asyncio.run(draw())
