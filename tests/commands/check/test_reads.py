"""The rows of what Pinterest knows of the accounts: never a reason not to run, and no call without the token."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from consumer.commands.check import local, reads
from consumer.commands.check.rows import Row, Severity
from tests.commands.check.asking import asked, nowhere, the_text
from tests.end_to_end.api import Api, Loop
from tests.end_to_end.processes import ACCOUNT, TOKEN

OK, WARNING, SKIPPED = Severity.OK, Severity.WARNING, Severity.SKIPPED
OWN = '[own_events]\nnames = ["quiz_done", "store_visit"]'


def rows(folder: Path, url: str, mapping: str = "", **settings: str) -> list[Row]:
    """Return the rows of an API at this URL."""
    (folder / "mapping.toml").write_text(mapping)
    given: dict[str, Any] = {"PINTEREST_READ_TOKEN": TOKEN} | settings
    env = nowhere(folder, PINTEREST_API_URL=url, PINSTREAM_MAPPING_FILE=str(folder / "mapping.toml"), **given)
    found = asked(env, local.schema, reads.known)
    assert TOKEN not in repr(found)
    return found


def test_without_the_token_a_row_says_how_to_get_them(tmp_path: Path) -> None:
    """Nothing is asked: there is no API at that address."""
    [(verdict, text)] = rows(tmp_path, "http://127.0.0.1:9/v5", OWN, PINTEREST_READ_TOKEN="")
    assert verdict is SKIPPED
    assert text.startswith("set PINTEREST_READ_TOKEN, a token with the scope ads:read")


@pytest.mark.parametrize(
    ("ago", "verdict", "said"),
    [
        (None, WARNING, "has never fired"),
        (125.0, OK, "fired last 2 minutes ago"),
        (-30.0, OK, "fired last 0 minutes ago"),
        (3.2 * 86_400, WARNING, "fired last 3 days ago: see whether the site still has it"),
    ],
)
def test_each_tag_says_when_it_fired(
    servers: Loop, tmp_path: Path, ago: float | None, verdict: Severity, said: str
) -> None:
    """A tag that is silent for a day may be gone from the site."""
    with Api(servers, tag_fired=None if ago is None else time.time() - ago) as api:
        [row] = rows(tmp_path, api.url)
    assert row.verdict is verdict
    assert row.text.startswith(f"{ACCOUNT}: the tag 'shop tag' ")
    assert said in row.text


def test_own_events_are_registered_or_named(servers: Loop, tmp_path: Path) -> None:
    """For each account; the names that are not registered, with what follows and what to do."""
    extra = {"PINTEREST_EXTRA_AD_ACCOUNT_IDS": "549755885176"}
    with Api(servers, own_events=["quiz_done", "store_visit"]) as api:
        found = rows(tmp_path, api.url, OWN, **extra)
    assert [row.text for row in found if row.verdict is OK] == [
        f"{account}: registered: quiz_done, store_visit" for account in (ACCOUNT, "549755885176")
    ]
    with Api(servers, own_events=["quiz_done"], tag_fired=time.time()) as api:
        text = the_text(rows(tmp_path, api.url, OWN), WARNING)
    assert text.startswith(
        f"{ACCOUNT}: not registered, so Pinterest labels these events Unknown: store_visit; "
    )


@pytest.mark.parametrize(
    ("token", "url", "said"),
    [
        ("pina_other", None, "not known: the token is refused: set a valid one in PINTEREST_READ_TOKEN"),
        (TOKEN, "http://127.0.0.1:9/v5", "not known: no answer (connect)"),
    ],
)
def test_what_is_not_known_is_no_fault(
    servers: Loop, tmp_path: Path, token: str, url: str | None, said: str
) -> None:
    """A refused token, an API that is away: a skipped row each, which says why."""
    with Api(servers) as api:
        found = rows(tmp_path, url or api.url, OWN, PINTEREST_READ_TOKEN=token)
    assert [row.verdict for row in found] == [SKIPPED, SKIPPED]
    assert all(row.text.startswith(f"{ACCOUNT}: {said}") for row in found)
    assert "pina_other" not in repr(found)
