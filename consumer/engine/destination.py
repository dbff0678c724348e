"""Which destination events go to, as a short tag: a delivered key and a committed offset mean nothing for another one.

Theory of operation. A destination is the address of the API and whether its test mode is on. What does not make it
another one does not change the tag: credentials, query, fragment, a slash at the end, the case of scheme and host, the
scheme's own port written out. (RFC 3986, 6.2.2 and 6.2.3; the case of a path does matter there.) Ad accounts are no
part of it: they stand beside the tag where that matters.

The tag is a digest, so that no address stands in the metadata of commits or in a key.
"""

from __future__ import annotations

import hashlib
import re
from base64 import urlsafe_b64encode
from typing import Final
from urllib.parse import urlsplit

_PORTS: Final = {"http": 80, "https": 443}
_DIGEST_BYTES: Final = 6
_TAG: Final = re.compile(r"[A-Za-z0-9_-]{8}")


def destination_tag(url: str, test_mode: bool) -> str:
    """The tag of the API at `url`, in test mode or not: eight characters of A-Z, a-z, 0-9, ``-`` and ``_``.

    Raises `ValueError` for a URL that cannot be read.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or _PORTS.get(scheme, 0)
    identity = "\n".join((scheme, host, str(port), parts.path.rstrip("/"), "test" if test_mode else "live"))
    return urlsafe_b64encode(hashlib.sha256(identity.encode()).digest()[:_DIGEST_BYTES]).decode()


def is_tag(text: str) -> bool:
    """Whether `text` can be a tag."""
    return _TAG.fullmatch(text) is not None


REAL_API: Final = destination_tag("https://api.pinterest.com/v5", test_mode=False)
"""The platform itself, in live mode: the destination of everything written before destinations had tags."""
