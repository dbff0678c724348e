"""The access token: read again when its file changes, and never shown."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from consumer.adapters.conversions_api import ConversionsApi, Token, TokenFile
from consumer.engine.messages import Answered, Send, Unanswered
from consumer.errors import SettingsError
from consumer.settings.passthrough import read_secret_file
from consumer.settings.values import parse_header_text
from tests.adapters.test_conversions_api import SECRET, SEND, client, serving

NAMED = "PINTEREST_ACCESS_TOKEN_FILE"


def token_file(path: Path, on_trouble: Callable[[str], None] = lambda _: None) -> TokenFile:
    """Return the token in this file, as `building.open_token` makes it."""
    return TokenFile(path, partial(read_secret_file, NAMED, parse=parse_header_text), on_trouble)


# -- the token


async def test_a_token_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    """A token file is read before each attempt, without a restart and without white space around the token."""
    path = tmp_path / "token"
    path.write_text("pina_one\n")
    async with serving() as (url, seen), client(url, token_file(path)) as api:
        await api.send(SEND)
        path.write_text("  pina_the_second \n")
        await api.send(SEND)
        assert await api.read_token() is False
    assert [headers["authorization"] for _, _, headers, _ in seen.requests] == [
        "Bearer pina_one",
        "Bearer pina_the_second",
    ]


async def test_a_mounted_secret_that_is_swapped_is_read(tmp_path: Path) -> None:
    """A secret that Kubernetes swaps by a symbolic link, with equal size and perhaps equal time, is read again."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"pina_{name}")
    link = tmp_path / "token"
    link.symlink_to(tmp_path / "one")
    token = token_file(link)
    (tmp_path / "next").symlink_to(tmp_path / "two")
    (tmp_path / "next").replace(link)
    assert token.value() == "pina_two"


def test_reload_returns_whether_the_token_changed(tmp_path: Path) -> None:
    """A file that is written again with the same token counts as unchanged."""
    path = tmp_path / "token"
    path.write_text("pina_one")
    token = token_file(path)
    path.write_text("pina_one\n\n")
    assert token.reload() is False
    path.write_text("pina_two")
    assert token.reload() is True
    assert Token("x").reload() is False


@pytest.mark.parametrize("trouble", ["missing", "empty", "not text"])
def test_a_file_in_trouble_leaves_the_last_token_in_force(tmp_path: Path, trouble: str) -> None:
    """While the file is missing, empty or no text, as a secret is while it is replaced, the last token is used."""
    path = tmp_path / "token"
    path.write_text("pina_one")
    token = token_file(path)
    if trouble == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if trouble == "empty" else b"\xff\xfe")
    assert token.reload() is False
    assert token.value() == "pina_one"
    path.write_text("pina_two")
    assert token.value() == "pina_two"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff"])
def test_no_token_to_begin_with_is_an_error_that_names_the_variable(
    tmp_path: Path, content: bytes | None
) -> None:
    """Without a token at the start the error names the variable."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError, match=f"^{NAMED}: "):
        token_file(path)


def test_the_token_shows_nowhere(tmp_path: Path) -> None:
    """The token is in no repr and no text of an object."""
    path = tmp_path / "token"
    path.write_text(SECRET)
    api = ConversionsApi(
        "http://127.0.0.1:1", Token(SECRET), account="1", timeout=1.0, concurrency=1, agent="x"
    )
    for thing in (Token(SECRET), token_file(path), api):
        assert SECRET not in repr(thing) + str(thing)
        assert SECRET not in format(thing)


@pytest.mark.parametrize(
    "token", ["pina_a\npina_SECRET", "pina_\0SECRET", "pina_SECRET\u2028x", "pina_SECRETé"]
)
async def test_a_token_no_header_can_hold_raises_nothing_and_shows_nowhere(token: str) -> None:
    """A token that no header can hold makes the attempt unanswered, without an exception and without the
    token's text."""
    async with serving() as (url, seen), client(url, Token(token)) as api:
        try:
            answer = await api.send(SEND)
        except Exception as error:
            pytest.fail("raised: " + "".join(traceback.format_exception_only(error)).replace(token, "***"))
    if seen.requests:
        return
    assert isinstance(answer, Unanswered)
    assert "SECRET" not in repr(answer)


async def test_personal_data_is_in_no_repr() -> None:
    """The repr of a command or an answer does not contain events or the body."""
    send = Send(7, "549755885175", [b'{"data":[{"user_data":{"em":["jane@example.org"]}}]}'], 1)
    assert "jane" not in repr(send)
    assert "jane" not in repr(Answered(7, 200, {}, b'{"error_message": "jane@example.org"}'))


@pytest.mark.parametrize(
    "content", ["pina_one\npina_two\n", "pina_one\r\nDATE: 2026", "pina\x00_one", "pina_one\ttwo", "pina one"]
)
def test_a_file_with_more_than_the_token_is_named(tmp_path: Path, content: str) -> None:
    """No header can have it: at the start it is an error, later the last token stays in force; neither shows it."""
    path, said = tmp_path / "token", list[str]()
    path.write_text("pina_good")
    token = token_file(path, said.append)
    path.write_text(content)
    assert token.value() == "pina_good"
    fault = (
        f"{NAMED}: {str(path)!r}: the text in the file has blanks, line breaks or characters that no token has; it "
        "must be the token only"
    )
    assert said == [f"{fault}; until then the last one stays in force"]
    with pytest.raises(SettingsError) as caught:
        token_file(path)
    assert str(caught.value) == fault
