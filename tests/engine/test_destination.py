"""The tag of a destination: the same for every spelling of one address, another for everything else."""

from __future__ import annotations

import re

import pytest

from consumer.engine.model import REAL_API, destination_tag

REAL = "https://api.pinterest.com/v5"


@pytest.mark.parametrize(
    "spelling",
    [
        "https://api.pinterest.com/v5/",
        "https://api.pinterest.com/v5//",
        "HTTPS://API.Pinterest.com/v5",
        "https://api.pinterest.com:443/v5",
        "https://api.pinterest.com./v5",
        "https://user:secret@api.pinterest.com/v5",
        "https://api.pinterest.com/v5?test=true",
        "https://api.pinterest.com/v5#part",
    ],
)
def test_one_address_has_one_tag_however_it_is_written(spelling: str) -> None:
    """Credentials, query, fragment, a slash at the end, case of the host and the default port make no difference."""
    assert destination_tag(spelling, test_mode=False) == REAL_API


def test_another_address_or_mode_has_another_tag() -> None:
    """Scheme, host, port, path (its case too) and test mode tell destinations apart."""
    others = [
        destination_tag(REAL, test_mode=True),
        destination_tag("http://api.pinterest.com/v5", test_mode=False),
        destination_tag("https://api.pinterest.com:8443/v5", test_mode=False),
        destination_tag("https://api.pinterest.com", test_mode=False),
        destination_tag("https://api.pinterest.com/V5", test_mode=False),
        destination_tag("https://api-sandbox.pinterest.com/v5", test_mode=False),
        destination_tag("http://127.0.0.1:8081/v5", test_mode=False),
        destination_tag("http://[::1]:8081/v5", test_mode=False),
    ]
    assert len({REAL_API, *others}) == 1 + len(others)


def test_the_tag_of_the_real_api_never_changes() -> None:
    """The tag is in commits and decides which keys of older stores count, so a changed digest would void them all."""
    assert REAL_API == destination_tag(REAL, test_mode=False) == "J9QEDF5A"


def test_a_tag_is_short_and_shows_nothing_of_the_address() -> None:
    """A tag is eight characters that need no escaping, and shows no part of the address."""
    tag = destination_tag("https://user:secret@shop.example/v5", test_mode=True)
    assert re.fullmatch(r"[A-Za-z0-9_-]{8}", tag)
