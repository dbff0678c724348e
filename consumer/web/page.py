"""The page as it is served: one document, put together when the server starts.

Theory of operation. `page.html` names its parts where they go: ``/* page.css */`` in the style element, the scripts in
the script element. They are put in as they are, so that nothing has to be built beforehand and nothing is fetched
afterwards; the server allows style and script by the hash of what came out.
"""

from __future__ import annotations

import re
from importlib.resources import files

_PARTS = re.compile(r"/\* ((?:\w+\.(?:css|js) ?)+) \*/")


def page() -> str:
    """The document, all parts in it."""
    folder = files("consumer.web")

    def read(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    return _PARTS.sub(lambda named: "\n" + "".join(map(read, named[1].split())), read("page.html"))
