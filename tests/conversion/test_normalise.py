"""Normalising and hashing of user data, against vectors written by hand from the platform's rules.

``vectors/normalise.json``: ``normalised`` is the text to send or to hash, null where the key is omitted;
``digest`` marks raw values that are digests already, ``unrecognised`` those of unknown form, which are sent and are no
identity; "refused" marks what refuses the whole event.
``vectors/digests.json``: ``sent`` is what goes out for each raw value; the digests in it are by ``sha256sum``.
"""

from __future__ import annotations

import hashlib
import json
import sys
import unicodedata
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.conversion import placeholders
from consumer.conversion.normalise import (
    HASHED_FIELDS,
    Omitted,
    Unrecognised,
    client_ip_address,
    hashing,
    text_of,
    trim,
)
from consumer.conversion.placeholders import is_public
from consumer.conversion.targets import EXTERNAL_ID_AS_WRITTEN, TARGETS

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors" / "normalise.json").read_text())
DIGESTS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "vectors" / "digests.json").read_text())
DIGEST = "ab530a13e45914982b79f9b7e3fba994cfd1f3fb22f71cea1afbf02b460c6d1d"

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=10**4000, max_value=10**4500),
    st.floats(),
    st.decimals(),
    st.binary(),
    st.text(),
    st.text(st.characters(codec=None, categories=("Cs", "Zs", "Nd", "Lu"))),
    st.lists(st.integers()),
)


def target_name(field: str) -> str:
    """Return the dotted name of a vector's field."""
    return next(
        name for name in TARGETS if name.rpartition(".")[2] == field and not name.startswith("app_info")
    )


def sha256(text: str) -> str:
    """Return the digest as the platform describes it."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['field']}-{vector['raw']!r:.40}")
def test_each_vector_gives_what_the_table_says(vector: dict[str, Any]) -> None:
    """Each hand-written vector is normalised, hashed or omitted as the platform's rules say."""
    field, wanted = vector["field"], vector["normalised"]
    result = TARGETS[target_name(field)].rule(vector["raw"])
    if wanted is None or wanted == "refused":
        assert isinstance(result, Omitted)
    elif field in HASHED_FIELDS and not vector.get("digest"):
        assert result == sha256(wanted)
        assert type(result) is (Unrecognised if vector.get("unrecognised") else str)
    else:
        assert result == wanted
        assert type(result) is type(wanted)


def test_there_are_enough_vectors() -> None:
    """There are many vectors, with every hashed field among them."""
    assert len(VECTORS) >= 300
    assert {vector["field"] for vector in VECTORS} >= HASHED_FIELDS.keys()


@pytest.mark.parametrize("vector", DIGESTS, ids=lambda vector: f"{vector['field']}-{vector['raw']!r:.40}")
def test_each_digest_is_that_of_another_program(vector: dict[str, Any]) -> None:
    """What is sent for each raw value has the digest that coreutils compute: text, encoding and hash are right."""
    assert TARGETS[target_name(vector["field"])].rule(vector["raw"]) == vector["sent"]


def test_there_are_digests_of_every_hashed_field() -> None:
    """Each hashed field has at least four digests, which differ where the people do."""
    for field in HASHED_FIELDS:
        assert len([vector for vector in DIGESTS if vector["field"] == field]) >= 4, field


@pytest.mark.parametrize("field", HASHED_FIELDS)
def test_blank_is_reported_from_malformed(field: str) -> None:
    """A blank value is omitted without a warning; a lone surrogate and bytes are malformed."""
    rule = hashing(HASHED_FIELDS[field][0])
    assert all(rule(value) is Omitted.BLANK for value in (None, "", " ", "\t\u00a0\u200b"))
    assert rule("\ud800@x") is Omitted.MALFORMED
    assert rule(b"jane@example.com") is Omitted.MALFORMED


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("em", sha256("")),
        *(("hashed_maids", zero) for zero in ("00000000-0000-0000-0000-000000000000", "0" * 32, "0", 0)),
        *(("hashed_maids", sha256(zero)) for zero in ("00000000-0000-0000-0000-000000000000", "0" * 32, "0")),
        ("client_ip_address", "0.0.0.0"),
        ("order_id", "0"),
    ],
)
def test_what_stands_for_nothing_is_a_placeholder(field: str, value: str) -> None:
    """Values that stand for nothing are placeholders, with a warning of their own."""
    assert TARGETS[target_name(field)].rule(value) is Omitted.PLACEHOLDER


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("db", "0001-01-01"),
        ("db", "2030-01-01"),
        ("client_ip_address", "10.0.0.1"),
        ("client_ip_address", "127.0.0.1"),
        ("client_ip_address", "fd00::1"),
    ],
)
def test_what_no_shopper_has_is_unlikely(field: str, value: str) -> None:
    """Values that the field takes and that no shopper has are omitted, with a warning of their own."""
    assert TARGETS[target_name(field)].rule(value) is Omitted.UNLIKELY


@pytest.mark.parametrize("word", sorted(placeholders.NO_VALUE))
@pytest.mark.parametrize("field", ["external_id", "hashed_maids", "fn", "ln", "ct"])
def test_a_word_for_nothing_identifies_nobody(field: str, word: str) -> None:
    """Words for a missing value are placeholders in any case, and so are their digests; names that people or cities
    have are names."""
    rule = TARGETS[target_name(field)].rule
    taken = field in ("fn", "ln", "ct") and word in placeholders.NO_VALUE - placeholders.NAMES
    for written in (word, word.upper(), word.capitalize(), f" {word} "):
        digest = sha256(written.strip())
        assert rule(written) == (sha256(word) if taken else Omitted.PLACEHOLDER)
        assert rule(digest) == (digest if taken else Omitted.PLACEHOLDER)


def test_no_word_for_nothing_has_a_digit_that_counts() -> None:
    """No such word has a digit from 1 to 9: the compiled module takes every id that has one."""
    assert not [word for word in placeholders.NO_VALUE if {*"123456789"} & {*word} or word != word.lower()]


@pytest.mark.parametrize("network", [str(network) for network in placeholders.NETWORKS])
def test_an_address_of_such_a_network_is_none(network: str) -> None:
    """The first and the last address of each network that no shopper is in are omitted, also mapped to IPv6; those
    beside it are sent."""
    listed = ip_network(network)
    for number in (int(listed[0]), int(listed[-1])):
        inside = type(listed[0])(number)
        assert not isinstance(client_ip_address(str(inside)), str)
        if inside.version == 4:
            assert not isinstance(client_ip_address(f"::ffff:{inside}"), str)
    beside = [int(listed[0]) - 1, int(listed[-1]) + 1]
    for number in (one for one in beside if 0 <= one < 1 << listed.max_prefixlen):
        outside = type(listed[0])(number)
        if is_public(outside):
            assert client_ip_address(str(outside)) == str(outside)
            assert client_ip_address(outside.exploded) == outside.exploded


def test_external_id_can_keep_its_case() -> None:
    """With ``as_written`` the external id is trimmed and hashed in its own case."""
    assert EXTERNAL_ID_AS_WRITTEN.rule(" C-42 ") == sha256("C-42")
    assert EXTERNAL_ID_AS_WRITTEN.rule(DIGEST.upper()) == DIGEST


@given(value=ANYTHING)
def test_no_rule_raises_and_each_gives_text_or_a_reason(value: object) -> None:
    """For any value each rule of user data gives a digest, text that is valid Unicode, or a reason."""
    for name, target in TARGETS.items():
        if name.startswith("user_data."):
            result = target.rule(value)
            assert isinstance(result, Omitted) or (isinstance(result, str) and result.encode())
            if target.hashed and isinstance(result, str):
                assert len(result) == 64
                assert set(result) <= set("0123456789abcdef")


@given(value=st.text(min_size=1))
def test_a_digest_is_never_hashed_twice(value: str) -> None:
    """A digest, in any case and with blanks around, is sent as the same digest."""
    for normaliser, _, _ in HASHED_FIELDS.values():
        rule = hashing(normaliser)
        digest = rule(value)
        if isinstance(digest, str):
            assert rule(f" {digest.upper()}\n") == digest


def test_text_of_a_derived_type_is_plain_text() -> None:
    """Text of a derived type, which a decoder may use, is sent as plain text."""

    class Marked(str):
        __slots__ = ()

    assert type(text_of(Marked("e-1"))) is str


@given(value=st.text())
def test_text_is_kept_as_it_is(value: str) -> None:
    """`text_of` returns plain text unchanged, and finds that blank text is none."""
    assert text_of(value) == (value if trim(value) else Omitted.BLANK)


def test_all_white_space_and_punctuation_is_known() -> None:
    """All white space and punctuation of this Python's Unicode is removed from a city, and white space from the
    ends of a text."""
    for char in map(chr, range(sys.maxunicode + 1)):
        if char.isspace():
            assert trim(f"{char}a{char}") == "a"
        if char.isspace() or unicodedata.category(char).startswith("P"):
            assert HASHED_FIELDS["ct"][0](f"a{char}b") == "ab", hex(ord(char))
