"""The access token, in one file or in one for each ad account: read again when it changes, and never shown."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from consumer.adapters.conversions_api import ConversionsApi, Token, TokenFile
from consumer.engine.messages import Answered, Send, Unanswered
from consumer.errors import SettingsError
from consumer.settings import load
from consumer.settings.passthrough import read_secret_file
from consumer.settings.values import parse_header_text
from tests.adapters.test_conversions_api import SECRET, SEND, client, serving
from tests.end_to_end.processes import run_environment
from tests.support.kafka.harness import Kafka

NAMED = "PINTEREST_ACCESS_TOKEN_FILE"
ONE, OTHER = "549755885175", "549755885176"


def token_file(path: Path, on_error: Callable[[str], None] = lambda _: None) -> TokenFile:
    """Return the token in this file, as `building.open_token` makes it."""
    return TokenFile(path, partial(read_secret_file, NAMED, parse=parse_header_text), on_error)


def tokens(folder: Path, on_error: Callable[[str], None] = lambda _: None) -> dict[str, Token]:
    """Return the tokens of both accounts, as `building.open_token` makes them."""
    return {one: token_file(folder / one, on_error) for one in (ONE, OTHER)}


def fill(folder: Path, one: str = "pina_one", other: str = "pina_other") -> None:
    """Write both files."""
    (folder / ONE).write_text(one + "\n")
    (folder / OTHER).write_text(other)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with a token."""
    (tmp_path / "token").write_text("pina_one\n")
    return tmp_path / "token"


async def test_each_account_sends_its_own_token_and_reads_it_again(tmp_path: Path) -> None:
    """Before each attempt, without a restart and without white space around it; also if one file serves all."""
    fill(tmp_path)
    sent = []
    for given in (tokens(tmp_path), token_file(tmp_path / ONE)):
        async with serving() as (url, seen), client(url, given) as api:
            for written in ("pina_other", "  pina_another \n"):
                (tmp_path / OTHER).write_text(written)
                for account in (ONE, OTHER):
                    await api.send(Send(1, account, [b'{"data":[]}'], 1))
            assert await api.read_token() is False
        sent.append(
            [headers["authorization"].removeprefix("Bearer pina_") for _, _, headers, _ in seen.requests]
        )
    assert sent == [["one", "other", "one", "another"], ["one"] * 4]


def test_a_mounted_secret_that_is_swapped_is_read(tmp_path: Path) -> None:
    """Kubernetes swaps ``..data``, the link to all files of a secret, with equal sizes and perhaps equal times."""
    for name in ("..one", "..two"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, f"pina_{name}_1", f"pina_{name}_2")
    (tmp_path / "..data").symlink_to("..one")
    for account in (ONE, OTHER):
        (tmp_path / account).symlink_to(f"..data/{account}")
    found = tokens(tmp_path)
    assert (found[ONE].value(), found[OTHER].value()) == ("pina_..one_1", "pina_..one_2")
    (tmp_path / "next").symlink_to("..two")
    (tmp_path / "next").replace(tmp_path / "..data")
    assert (found[ONE].value(), found[OTHER].value()) == ("pina_..two_1", "pina_..two_2")


async def test_read_token_returns_whether_a_token_changed(tmp_path: Path) -> None:
    """It reads all files; one that is written again with the same token counts as unchanged."""
    fill(tmp_path)
    found = tokens(tmp_path)
    async with client("http://127.0.0.1:1", found) as api:
        fill(tmp_path, "pina_one\n")
        assert await api.read_token() is False
        fill(tmp_path, "pina_1", "pina_2")
        assert await api.read_token() is True
        assert [one.latest for one in found.values()] == ["pina_1", "pina_2"]
        assert await api.read_token() is False
        fill(tmp_path, "pina_1", "pina_3")
        assert await api.read_token() is True
    assert Token("x").reload() is False


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_a_file_when_failing_leaves_the_last_token_in_force(path: Path, content: bytes | None) -> None:
    """One line names the file; another one comes only after it was there again."""
    said: list[str] = []
    token = token_file(path, said.append)
    for good in ("pina_two", "pina_three"):
        before = token.value()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        assert token.reload() is False
        assert [token.value() for _ in range(3)] == [before] * 3
        path.write_text(good)
        assert token.value() == good
    assert len(said) == 2
    assert all(text.startswith(f"{NAMED}: '{path}' ") for text in said)
    assert all(text.endswith("; until then the last one stays in force") for text in said)
    assert not any("pina_" in text for text in said)


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff"])
def test_no_token_to_begin_with_is_an_error_that_names_the_file(
    tmp_path: Path, content: bytes | None
) -> None:
    """Also of one account, and also where the settings are read."""
    fill(tmp_path)
    (tmp_path / OTHER).unlink()
    (tmp_path / ".hidden").write_text("pina_hidden")
    if content is not None:
        (tmp_path / OTHER).write_bytes(content)
    with pytest.raises(SettingsError, match=f"^{NAMED}: '{tmp_path / OTHER}' "):
        tokens(tmp_path)
    env = run_environment(tmp_path, Kafka("127.0.0.1:9", "none"), "orders", "group", "http://127.0.0.1:9/v5")
    del env["PINTEREST_ACCESS_TOKEN"]
    more = {NAMED: str(tmp_path), "PINTEREST_EXTRA_AD_ACCOUNT_IDS": OTHER}
    with pytest.raises(SettingsError, match=rf"^{NAMED}: .*{OTHER}"):
        load(env | more)


def test_the_token_shows_nowhere(path: Path) -> None:
    """The token is in no repr and no text of an object."""
    path.write_text(SECRET)
    api = ConversionsApi(
        "http://127.0.0.1:1", Token(SECRET), account="1", timeout=1.0, concurrency=1, agent="x"
    )
    for thing in (Token(SECRET), token_file(path), {ONE: token_file(path)}, api):
        assert SECRET not in repr(thing) + str(thing)
        assert SECRET not in format(thing)


@pytest.mark.parametrize(
    "token", ["pina_a\npina_SECRET", "pina_\0SECRET", "pina_SECRET\u2028x", "pina_SECRETé"]
)
async def test_a_token_no_header_can_hold_raises_nothing_and_shows_nowhere(token: str) -> None:
    """The attempt is unanswered, without the token's text."""
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
def test_a_file_with_more_than_the_token_is_named(path: Path, content: str) -> None:
    """No header can have it: at the start it is an error, later the last token stays in force; neither shows it."""
    said = list[str]()
    token = token_file(path, said.append)
    path.write_text(content)
    assert token.value() == "pina_one"
    fault = (
        f"{NAMED}: {str(path)!r}: the text in the file has blanks, line breaks or characters that no token has; it "
        "must be the token only"
    )
    assert said == [f"{fault}; until then the last one stays in force"]
    with pytest.raises(SettingsError) as caught:
        token_file(path)
    assert str(caught.value) == fault
