"""The page as a document: one file that needs nothing else, and is readable without its figures."""

from __future__ import annotations

import re
from importlib.resources import files

from consumer.web.server import render_page

SCRIPT = re.findall(r"<script>(.*?)</script>", render_page(), re.DOTALL)
STYLE = re.findall(r"<style>(.*?)</style>", render_page(), re.DOTALL)
MARKUP = re.sub(r"<(style|script)>.*?</\1>", "", render_page(), flags=re.DOTALL)


def test_page_is_one_document_with_all_parts_in_it() -> None:
    """One style and one script, allowed by their hash; every part beside page.html is in it once, without comments and
    indentation."""
    assert (len(SCRIPT), len(STYLE)) == (1, 1)
    folder = files("consumer.web")
    parts = [one for one in folder.iterdir() if one.name.endswith((".css", ".js"))]
    assert len(parts) > 3
    for one in parts:
        lines = [line.lstrip(" ") for line in one.read_text("utf-8").splitlines(keepends=True)]
        code = "".join(line for line in lines if not line.startswith(("//", "/*")))
        assert render_page().count(code) == 1, one.name
    assert not re.search(r"/\* [\w. ]+\.(js|css) \*/", render_page())


def test_page_is_small_and_loads_nothing_else() -> None:
    """No library, no font, no picture from anywhere: the page works without the internet."""
    assert len(render_page().encode()) < 75_000
    assert set(re.findall(r"https?://[^\"]*", render_page())) == {"http://www.w3.org/2000/svg"}
    links = re.findall(r"(?:src|href)=\"([^\"#]+)\"", render_page())
    assert set(links) == {"data:,", "/status", "/history", "/metrics"}
    assert set(re.findall(r"(?:fetch|EventSource)\(\"([^\"]*)\"", render_page())) == {
        "/status",
        "/history",
        "/events",
        "/group",
    }
    assert not re.search(r"url\(|@import", STYLE[0])


def test_page_puts_in_text_and_never_markup() -> None:
    """Text of topics or of the API's messages cannot become markup; there is no inline handler."""
    for way in (
        "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "style=",
        "setProperty", "javascript:", ".style.", "cssText", "srcdoc",
    ):  # fmt: skip
        assert way not in render_page(), way
    assert re.findall(r"<[^>]*\son\w+=", MARKUP) == []


def test_only_one_region_is_announced_and_it_holds_no_figure() -> None:
    """Figures that change each second are no live region; the only one is a line that changes with the state."""
    assert re.findall(r'<[^>]*(?:role="(?:status|alert)"|aria-live)[^>]*>', MARKUP) == [
        '<p id="announce" class="unseen" role="status">'
    ]


def test_page_follows_the_reader_s_preferences() -> None:
    """Light and dark, and no motion if the reader prefers none."""
    assert "light-dark(" in STYLE[0]
    assert "animation" not in STYLE[0].partition("prefers-reduced-motion: no-preference")[0]
