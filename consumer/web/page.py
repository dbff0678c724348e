"""The page as it is served: one document, assembled when the server starts.

`page.html` names its parts where they belong: ``/* page.css */`` in the style element, the scripts in the script
element. They are inserted unchanged, so there is no build step and the browser fetches no further file. The server
allows style and script by their hashes.
"""

from __future__ import annotations

import re
from importlib.resources import files

_PARTS = re.compile(r"/\* ((?:\w+\.(?:css|js) ?)+) \*/")


def render_page() -> str:
    """Return the document with all parts inserted."""
    folder = files("consumer.web")

    def read(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    return _PARTS.sub(lambda named: "\n" + "".join(map(read, named[1].split())), read("page.html"))
