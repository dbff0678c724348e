"""The site: built strictly, every link leads somewhere, and it looks as it should in a browser, which asks nobody else.

`make site` builds what is published. Here it is built again, so that what is tested is of these pages.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright

from consumer import commands
from consumer.conversion.targets import TARGETS
from tests.web.page.browser import CHROMIUM, FLAGS, needs_browser
from website import links, reference

ROOT = Path(__file__).parents[1]
MERMAID = ROOT / "website" / "target" / "mermaid.min.js"
SIZES = {"desktop": (1440, 900), "tablet": (820, 1180), "phone": (390, 844)}
SHOWN = ("", "first-event/", "settings/", "runbook/", "reference/commands/", "architecture/")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    program = Path(sys.executable).with_name("mkdocs")
    if not MERMAID.exists():
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail("mermaid is not installed: make site")
        pytest.skip("mermaid is not installed: make site")
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [program, "build", "--config-file", ROOT / "website" / "mkdocs.yml", "--site-dir", folder],
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    """All pages of docs/ (its index is the navigation), those of the repository, and those that the code makes."""
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs).with_suffix("")) for path in docs.rglob("*.md")} - {"README"}
    for name in (*pages, "changelog", "contributing", "security", "helm", "example"):
        assert (site / name / "index.html").is_file(), name
    assert {f"{one}" for one in reference.pages()} == {
        f"reference/{path.parent.name}.md" for path in (site / "reference").glob("*/index.html")
    }
    assert (site / "mapping.schema.json").read_text("utf-8") == (
        ROOT / "schemas" / "mapping.schema.json"
    ).read_text("utf-8")


def test_every_link_leads_somewhere(site: Path) -> None:
    """Within the site to a page and a heading; out of it only to https, and to the repository where a page is none."""
    pages = links.read(site)
    assert len(pages) > 35
    assert links.broken(site, pages) == []
    others = links.outside(pages)
    assert [one for one in others if one.startswith("http://") and "127.0.0.1" not in one] == []
    blobs = [one for one in others if links.is_unknown(one) and "/blob/main/" in one]
    assert blobs
    for address in blobs:
        assert (ROOT / address.partition("/blob/main/")[2]).exists(), address


def test_pages_are_called_by_their_titles(site: Path) -> None:
    """What the repository names by its file is a link with the page's title, also where it stood as plain text."""
    home = (site / "index.html").read_text("utf-8")
    assert '<a href="guarantees/">Guarantees</a>' in home
    assert '<a href="guarantees/#memory">formula</a>' in home
    for page in ("", "runbook", "settings", "reference/commands"):
        text = (site / page / "index.html").read_text("utf-8")
        outside_code = re.sub(r"<(code|title)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert not re.search(r">[^<]*\b[a-z-]+\.md\b", outside_code), page


def test_programs_find_every_page(site: Path) -> None:
    """llms.txt lists all pages in the order of the navigation, each with its first sentence; their texts are there."""
    text = (site / "llms.txt").read_text("utf-8")
    lines = re.findall(r"^- \[(.+?)\]\((https://[^)]+)\): (.+)$", text, re.MULTILINE)
    assert text.startswith("# pinstream\n\n> ")
    assert len(lines) == text.count("\n- [") == len(list(site.rglob("index.html")))
    for title, address, sentence in lines:
        path = site / address.partition("//")[2].partition("/")[2]
        assert path.is_file(), address
        assert title
        assert sentence.endswith("."), address


def test_the_reference_has_everything() -> None:
    """Each command with its options, each field, each exit code of the errors."""
    pages = reference.pages()
    for name in commands._COMMANDS:
        assert f"## pinstream {name}" in pages["reference/commands.md"]
    assert "`--fail-fast`" in pages["reference/commands.md"]
    for target in TARGETS.values():
        assert f"| `{target.key}` |" in pages["reference/fields.md"]
    codes = re.findall(r"^\| (\d) \|", pages["reference/exit-codes.md"], re.MULTILINE)
    assert codes == sorted(codes)
    assert set(codes) == {"0", "1", "2", "3"}


class TestLinks:
    """What follows the links sees each mistake, and asks for what lies outside only when it should."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """A site of two pages."""
        (tmp_path / "two").mkdir()
        (tmp_path / "index.html").write_text('<h1 id="top">One</h1><a href="two/#there">two</a>')
        (tmp_path / "two" / "index.html").write_text('<h2 id="there">There</h2><a href="../#top">one</a>')
        return tmp_path

    def test_a_whole_site_passes(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """It says how much it has seen."""
        assert links.main([str(folder)]) == 0
        assert capsys.readouterr().out.startswith("2 pages, 2 links: 0 lead nowhere;")

    @pytest.mark.parametrize(
        ("link", "why"),
        [
            ("three/", "no such page"),
            ("two/#elsewhere", "no such heading"),
            ("#bottom", "no such heading"),
            ("/two", "no such page"),
        ],
    )
    def test_a_broken_link_is_named(
        self, folder: Path, link: str, why: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """With its page, and exit code 1."""
        (folder / "index.html").write_text(f'<a href="{link}">x</a>')
        assert links.main([str(folder)]) == 1
        assert f"index.html: {link}: {why}\n" in capsys.readouterr().out

    def test_nothing_is_no_site(self, tmp_path: Path) -> None:
        """A folder without pages is a mistake, too."""
        assert links.main([str(tmp_path)]) == 1

    def test_addresses_of_others_are_asked_for(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """404 is named, an answer that only a program gets is none of the page's fault, and nowhere is not asked."""
        monkeypatch.setattr(links, "_TRIES", 1)
        asked: list[str] = []

        class Server(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_error({"/gone": 404, "/people": 403}.get(self.path, 404))

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        with serving(Server) as at:
            there = "".join(
                f'<a href="{one}">x</a>'
                for one in (f"{at}/gone", f"{at}/people", "https://nobody.pinstream.example/x")
            )
            (folder / "index.html").write_text(there)
            (folder / "two" / "index.html").unlink()
            assert links.main([str(folder), "--outside"]) == 1
        said = capsys.readouterr().out
        assert said.splitlines()[0] == f"index.html: {at}/gone: answers 404"
        assert "2 addresses of others, asked; 1 in places that nobody knows yet" in said
        assert asked == ["/gone", "/people"]


@contextlib.contextmanager
def serving(handler: Any) -> Iterator[str]:
    """A web server on this machine; yields its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    """The site on a web server."""

    class Server(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, directory=str(site), **more)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with serving(Server) as at:
        yield at


@contextlib.asynccontextmanager
async def browsing(size: str, scheme: Any, address: str, wrong: list[str]) -> AsyncIterator[Page]:
    """A browser of that size; what goes wrong on its pages, and what they ask of others, is added to `wrong`."""
    assert CHROMIUM is not None, "CI needs a browser: chromium is not there"
    width, height = SIZES[size]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        context = await browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        page = await context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda one: None if one.url.startswith(address) else wrong.append(one.url))
        yield page
        await browser.close()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
async def test_it_is_shown_as_it_should_be(address: str, size: str, scheme: str) -> None:
    """No page is wider than the window, none has an error or asks another server, and each is light or dark as the
    reader's system is. The pictures are in artifacts/site-pictures."""
    wrong: list[str] = []
    pictures = ROOT / "artifacts" / "site-pictures"
    async with browsing(size, scheme, address, wrong) as page:
        for path in SHOWN:
            await page.goto(f"{address}/{path}")
            assert await page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], path
            background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            light = sum(map(int, re.findall(r"\d+", background)[:3])) > 384
            assert light is (scheme == "light"), background
            name = path.strip("/").replace("/", "-") or "index"
            await page.screenshot(path=pictures / f"{name}-{size}-{scheme}.png")
    assert wrong == []


@needs_browser
async def test_diagrams_are_drawn(address: str) -> None:
    """README's diagram becomes a picture, with the words of its boxes in it."""
    wrong: list[str] = []
    async with browsing("desktop", "light", address, wrong) as page:
        await page.goto(address)
        # Material puts the picture where no script of the page can look; its room shows that it is there.
        await page.wait_for_selector("div.mermaid", state="attached", timeout=60_000)
        await page.wait_for_function(
            "document.querySelector('div.mermaid').getBoundingClientRect().height > 100"
        )
        assert await page.locator("pre.mermaid").count() == 0
    assert wrong == []


@needs_browser
async def test_the_search_finds(address: str) -> None:
    """The page that says what to do about a refused token comes first."""
    wrong: list[str] = []
    async with browsing("desktop", "light", address, wrong) as page:
        await page.goto(address, wait_until="networkidle")
        await page.click("[data-md-component=search-query]")
        await page.keyboard.type("token expired")
        # The first one changes while the words are typed.
        first = "document.querySelector('.md-search-result__link')?.href.includes('/runbook/')"
        await page.wait_for_function(first, timeout=60_000)
    assert wrong == []
