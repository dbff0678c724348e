"""The compiled module writes what orjson and hashlib would, to the byte."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumer.conversion.program import COMPILED

if COMPILED is None:
    pytest.skip("the package was built without a C compiler", allow_module_level=True)

from consumer.conversion.native import _events

TEXTS = st.one_of(
    st.text(max_size=80),
    st.text(st.characters(max_codepoint=127), max_size=200),
    st.lists(st.sampled_from(['"', "\\", "\n", "\x00", "\x1f", "\x7f", "é", "\u2028", "😀", "a" * 40])).map(
        "".join
    ),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        TEXTS,
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.sampled_from([0, -1, 9, 10, 99, 100, 2**63 - 1, -(2**63), 2**63]),
        st.floats(),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(value=VALUES)
@example(value=[])
@example(value=[[], ["a"], {}])
def test_values_are_written_as_orjson_writes_them(value: Any) -> None:
    """Text of any kind, numbers up to 64 bits, arrays, objects and other values are written as orjson writes them."""
    assert _events.written(value) == orjson.dumps(value)


@pytest.mark.parametrize(
    "value", ["\ud800", "a\udfff", ["x", "\ud800"], 2**64, -(2**63) - 1, b"bytes", {1: 2}]
)
def test_what_orjson_refuses_is_refused(value: Any) -> None:
    """A lone surrogate, a number of more than 64 bits and a value that is no JSON raise."""
    with pytest.raises(orjson.JSONEncodeError):
        orjson.dumps(value)
    with pytest.raises((orjson.JSONEncodeError, UnicodeEncodeError)):
        _events.written(value)


# FIPS 180-4's examples of one block, by NIST: of no bit, and of 24 bits.
VECTORS = {
    b"": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    b"abc": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
}


@pytest.fixture(params=[False, True], ids=["portable", "instructions"])
def hashing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hash in portable C, and with the processor's instructions; one that has none hashes in portable C twice."""
    assert not _events.hash_with_instructions(request.param) or request.param
    yield
    _events.hash_with_instructions(True)


def by_hashlib(texts: list[bytes]) -> list[str]:
    """The digests as Python gives them."""
    return [hashlib.sha256(text).hexdigest() for text in texts]


@pytest.mark.usefixtures("hashing")
def test_the_standard_s_examples() -> None:
    """Together and each alone."""
    assert _events.digests_of([*VECTORS]) == [*VECTORS.values()]
    assert [_events.digests_of([text]) for text in VECTORS] == [[digest] for digest in VECTORS.values()]


@pytest.mark.usefixtures("hashing")
@pytest.mark.parametrize("together", range(1, 10))
def test_texts_of_every_length_in_every_lane(together: int) -> None:
    """However many texts are hashed together, and of whatever lengths, each gets its own digest."""
    chosen = random.Random(together)
    sizes = [*range(56)] * 8
    chosen.shuffle(sizes)
    for at in range(0, len(sizes), together):
        texts = [chosen.randbytes(size) for size in sizes[at : at + together]]
        assert _events.digests_of(texts) == by_hashlib(texts)


def test_wrong_digests_are_an_error_at_the_start() -> None:
    """A module that was compiled to something else ends the process; events with wrong digests match nobody."""
    program = "import hashlib; hashlib.sha256 = hashlib.sha3_256\nimport consumer.conversion.native._events as found"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: SHA-256 as it was compiled here gives wrong digests: install with PINSTREAM_NO_COMPILE=1"
    )
