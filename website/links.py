"""Follows the links of the built site: ``python -m website.links FOLDER [--outside]``.

Every address within the site has to be a file of it, with the anchor that the link names. Links to the addresses of
pyproject.toml that nobody knows yet are counted, since nobody can follow them. With ``--outside`` every other address
is asked for, too. What is wrong is one line each, and exit code 1.
"""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

# No address ends so, by RFC 2606: it stands for one that nobody knows yet.
UNKNOWN = ".example"
# Answers of servers that know the page but want a person to ask for it, or want to be asked less often.
ALIVE = {401, 403, 405, 406, 429, 999}
_TRIES, _SECONDS = 3, 20.0
_FROM = "http://site.invalid/"


class _Reader(HTMLParser):
    """Takes the links and the anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value or "")
            # A canonical address is this page's own, wherever the site will be.
            elif name in ("href", "src") and value and ("rel", "canonical") not in attrs:
                self.links.append(value)


def read(folder: Path) -> dict[str, _Reader]:
    """Return the pages of the site, by their paths in it."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        pages[path.relative_to(folder).as_posix()] = reader = _Reader()
        reader.feed(path.read_text("utf-8"))
    return pages


def broken(folder: Path, pages: dict[str, _Reader]) -> list[str]:
    """Return a line for each link within the site that leads nowhere."""
    wrong = []
    for at, page in pages.items():
        for link in page.links:
            whole = urljoin(_FROM + at, link)
            if not whole.startswith(_FROM):
                continue
            address, anchor = urldefrag(whole)
            path = unquote(urlsplit(address).path).lstrip("/")
            found = f"{path}index.html" if path.endswith("/") or not path else path
            if not (folder / found).is_file():
                # 404.html is shown for any address: its links begin at the root of the site's address.
                wrong.append(f"{at}: {link}: no such page")
            elif anchor and found in pages and unquote(anchor) not in pages[found].anchors:
                wrong.append(f"{at}: {link}: no such heading")
    return wrong


def outside(pages: dict[str, _Reader]) -> dict[str, str]:
    """Return the addresses of others, each with a page that links to it."""
    found: dict[str, str] = {}
    for at, page in pages.items():
        for link in page.links:
            if link.startswith(("http://", "https://")):
                found.setdefault(urldefrag(link)[0], at)
    return found


def is_unknown(address: str) -> bool:
    """Return whether nobody knows yet where this is."""
    return (urlsplit(address).hostname or "").endswith(UNKNOWN)


def ask(address: str) -> str:
    """Return why an address does not answer; empty if it does."""
    why = ""
    for attempt in range(_TRIES):
        time.sleep(attempt * 2.0)
        request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0 (link check)"})
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS):  # http or https, see `outside`
                return ""
        except urllib.error.HTTPError as error:
            if error.code in ALIVE:
                return ""
            why = f"answers {error.code}"
            if error.code < 500:
                break
        except OSError as error:
            why = f"does not answer ({error})"
    return why


def main(arguments: list[str]) -> int:
    """Follow the links of a built site. Returns the exit code."""
    folder = Path(arguments[0])
    pages = read(folder)
    wrong = broken(folder, pages)
    others = outside(pages)
    known = [address for address in others if not is_unknown(address)]
    if "--outside" in arguments:
        wrong += [f"{others[one]}: {one}: {why}" for one in known if (why := ask(one))]
    print("\n".join(wrong), end="\n" if wrong else "")
    print(
        f"{len(pages)} pages, {sum(len(page.links) for page in pages.values())} links: {len(wrong)} lead nowhere; "
        f"{len(known)} addresses of others, {'asked' if '--outside' in arguments else 'not asked'}; "
        f"{len(others) - len(known)} in places that nobody knows yet (pyproject.toml, [tool.pinstream.addresses])"
    )
    return 1 if wrong or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
