"""``PINTEREST_ACCESS_TOKEN_FILE`` as a folder: each ad account has its own token, in the file of its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumer.adapters.conversions_api import Token
from consumer.engine.messages import Send
from consumer.errors import SettingsError
from consumer.settings import load
from tests.adapters.test_api_token import token_file
from tests.adapters.test_conversions_api import client, serving
from tests.end_to_end.processes import run_environment
from tests.support.kafka.harness import Kafka

NAMED = "PINTEREST_ACCESS_TOKEN_FILE"
ONE, OTHER = "549755885175", "549755885176"


def tokens(folder: Path, said: list[str] | None = None) -> dict[str, Token]:
    """Return the tokens of both accounts, as `building.token` makes them."""
    lines: list[str] = [] if said is None else said
    return {one: token_file(folder / one, lines.append) for one in (ONE, OTHER)}


def fill(folder: Path, one: str = "pina_one", other: str = "pina_other") -> None:
    """Write both files."""
    (folder / ONE).write_text(one + "\n")
    (folder / OTHER).write_text(other)


async def test_each_account_sends_its_own_and_reads_it_again(tmp_path: Path) -> None:
    """Each account's calls carry its own token, which is read again before each attempt."""
    fill(tmp_path)
    async with serving() as (url, seen), client(url, tokens(tmp_path)) as api:
        for account in (ONE, OTHER):
            await api.send(Send(1, account, [b'{"data":[]}'], 1))
        (tmp_path / OTHER).write_text("pina_another")
        for account in (ONE, OTHER):
            await api.send(Send(1, account, [b'{"data":[]}'], 1))
    sent = [headers["authorization"] for _, _, headers, _ in seen.requests]
    assert sent == ["Bearer pina_one", "Bearer pina_other", "Bearer pina_one", "Bearer pina_another"]


def test_a_mounted_secret_that_is_swapped_is_read(tmp_path: Path) -> None:
    """Tokens are read again after Kubernetes swaps ``..data``, the link through which all files of a secret are
    reached."""
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
    """`read_token` reads all files and returns whether the token of one or both has changed."""
    fill(tmp_path)
    found = tokens(tmp_path)
    async with client("http://127.0.0.1:1", found) as api:
        assert await api.read_token() is False
        fill(tmp_path, "pina_1", "pina_2")
        assert await api.read_token() is True
        assert [one.latest for one in found.values()] == ["pina_1", "pina_2"]
        assert await api.read_token() is False
        fill(tmp_path, "pina_1", "pina_3")
        assert await api.read_token() is True


def test_a_missing_file_leaves_its_token_in_force_and_is_reported(tmp_path: Path) -> None:
    """When a file is missing its last token is used and one line names the path; another line comes only after
    the file was there again."""
    fill(tmp_path)
    said: list[str] = []
    found = tokens(tmp_path, said)
    (tmp_path / OTHER).unlink()
    assert [found[OTHER].value() for _ in range(3)] == ["pina_other"] * 3
    [text] = said
    assert text.startswith(f"{NAMED}: '{tmp_path / OTHER}' cannot be read: No such file or directory; ")
    assert text.endswith("; until then the last one stays in force")
    (tmp_path / OTHER).write_text("pina_new")
    assert found[OTHER].value() == "pina_new"
    (tmp_path / OTHER).write_text("")
    assert found[OTHER].value() == "pina_new"
    assert len(said) == 2
    assert not any("pina_" in text for text in said)


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_an_account_without_a_token_is_an_error_at_start(tmp_path: Path, content: str | None) -> None:
    """An account without a token is an error at the start that names account and file, also where the settings
    are read."""
    fill(tmp_path)
    (tmp_path / OTHER).unlink()
    (tmp_path / ".hidden").write_text("pina_hidden")
    if content is not None:
        (tmp_path / OTHER).write_text(content)
    with pytest.raises(SettingsError, match=f"^{NAMED}: '{tmp_path / OTHER}' (cannot be read|is empty)"):
        tokens(tmp_path)
    env = run_environment(tmp_path, Kafka("127.0.0.1:9", "none"), "orders", "group", "http://127.0.0.1:9/v5")
    del env["PINTEREST_ACCESS_TOKEN"]
    more = {NAMED: str(tmp_path), "PINTEREST_EXTRA_AD_ACCOUNT_IDS": OTHER}
    with pytest.raises(SettingsError, match=rf"^{NAMED}: .*{OTHER}"):
        load(env | more)


def test_the_tokens_show_nowhere(tmp_path: Path) -> None:
    """The tokens are in no repr."""
    fill(tmp_path)
    assert "pina_" not in repr(tokens(tmp_path)) + str(tokens(tmp_path))
