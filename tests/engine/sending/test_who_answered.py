"""Who answered instead of the platform: the log says it in a few words, with no value that the answer repeats."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine.sending.masking import who_answered
from tests.engine.building import PROPERTY

HTML = {"content-type": "text/html", "server": "nginx/1.18.0 (Ubuntu)"}
DIGEST = "973dfe463ec85785f5f95af5ba3906eedb2d931c24e69824a89ea65dba4e813b"


@pytest.mark.parametrize(
    ("headers", "body", "words"),
    [
        (
            HTML,
            b"<html><head><title>413 Request Entity Too Large</title>",
            "nginx/1.18.0: 413 Request Entity Too Large",
        ),
        ({}, b"", "an empty body"),
        ({"server": "envoy"}, b" \n", "envoy: an empty body"),
        ({}, b"upstream connect error", "upstream connect error"),
        ({}, b"<h1>Access&nbsp;Denied</h1><script>var token = 1</script>", "Access Denied"),
        (
            {},
            "<title>アクセス 拒否 – Zugriff verweigert!</title>".encode(),
            "アクセス 拒否 – Zugriff verweigert!",
        ),
        ({}, b"<title>\nAttention Required! | Cloudflare\n</title>", "Attention Required! | Cloudflare"),
        ({}, b'{"message": "Forbidden"}', "Forbidden"),
        ({}, b'{"error": {"code": 403, "message": "no such route"}}', "no such route"),
        ({}, b'{"errors": ["bad gateway", "later"]}', "bad gateway later"),
        ({}, b'{"trace": "jane"}', "a body without words"),
        ({}, b'{"message": ', "a body without words"),
        ({"server": "<script>"}, b"\x00\xff\xfe", "a body without words"),
        ({"server": "Jane@example.org"}, b"no", "no"),
    ],
)
def test_the_server_and_the_first_words_of_its_page_are_shown(
    headers: dict[str, str], body: bytes, words: str
) -> None:
    """The text is the server's product, and the page's title, its message or its first words."""
    assert who_answered(headers, body) == words


@pytest.mark.parametrize(
    "secret",
    [
        "jane.doe@example.org",
        DIGEST,
        "pina_ABCDEFGHIJKLMNOP1234",
        "Bearer abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.sig",
        "192.0.2.17",
        "2001:db8::17",
        "+49 170 1234567",
        "https://shop.example.org/?user=jane",
        "0123456789",
        "abcdefghijklmnopqrstuvwxyz",
    ],
)
@pytest.mark.parametrize("page", ["<title>{} denied</title>", "denied: {}", '{{"message": "{} denied"}}'])
def test_personal_values_and_secrets_are_not_shown(secret: str, page: str) -> None:
    """Addresses, digests, tokens and long numbers of the answer are not shown."""
    said = who_answered({"server": secret}, page.format(secret).encode())
    assert secret not in said
    assert "denied" in said or said.endswith("a copy of the request")


@pytest.mark.parametrize(
    "escaped", ["a gift for Jane", "A GIFT FOR JANE", "a+gift+for+Jane", "a%20gift%20for%20Jane"]
)
def test_values_of_the_request_are_masked_however_they_are_written(escaped: str) -> None:
    """Values of the request are masked in every spelling, also those of plain words."""
    request = orjson.dumps({"data": [{"custom_data": {"search_string": "a gift for Jane"}}]})
    assert who_answered({}, f"<h1>{escaped}</h1> blocked".encode(), request) == "*** blocked"


def test_a_copy_of_the_request_is_not_quoted() -> None:
    """When the answer holds a field name of the request, none of it is quoted: values may follow."""
    assert who_answered({}, b'you sent {"data":[{"event_name":"checkout"}]}') == "a copy of the request"
    assert who_answered({}, b"Authorization: Bearer x") == "a copy of the request"


@PROPERTY
@given(
    st.binary(max_size=300) | st.text(max_size=300).map(str.encode),
    st.text(max_size=60),
    st.text(max_size=30),
)
def test_any_answer_gives_one_short_printable_line(body: bytes, server: str, kind: str) -> None:
    """Any answer gives one printable line of bounded length, and raises nothing."""
    said = who_answered({"server": server, "content-type": kind}, body)
    assert 0 < len(said) < 200
    assert said.isprintable()


@pytest.mark.parametrize(
    "body", [b"<" * 5_000_000, b"<title>" * 700_000, b"[" * 5_000_000, b"a" * 5_000_000, b"<!--" * 10**6]
)
def test_a_large_body_costs_no_more_than_a_small_one(body: bytes) -> None:
    """Only the beginning of a large body is read."""
    assert len(who_answered({}, body)) < 200
