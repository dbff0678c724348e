"""The compiled module writes the same JSON as orjson, to the byte."""

from __future__ import annotations

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


@settings(max_examples=1000, deadline=None)
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
