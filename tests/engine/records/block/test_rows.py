"""Values computed for many records at once: the compiled functions return the same as the plain ones."""

from __future__ import annotations

from array import array
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.engine.model import Record
from consumer.engine.native import plain

compiled = pytest.importorskip("consumer.engine.native._rows", reason="built without a C compiler")
RECORDS = st.lists(
    st.builds(
        Record,
        st.integers(0, 2**63 - 1),
        st.integers(-1, 2**50),
        st.none() | st.binary(max_size=5),
        st.none() | st.binary(max_size=9),
        st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=2).map(tuple),
    ),
    max_size=6,
)


@settings(deadline=None)
@given(RECORDS)
def test_columns_are_the_same(records: list[Record]) -> None:
    """Sizes and offsets of any records are the same from both."""
    assert compiled.sizes_of(records) == plain.sizes_of(records)
    assert compiled.offsets_of(records) == plain.offsets_of(records)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1), max_size=4))
def test_offsets_rise_or_not(numbers: list[int]) -> None:
    """Equal offsets do not rise; a single offset, or none, does."""
    for column in (array("q", numbers), array("q", sorted(numbers))):
        assert compiled.rising(column) == plain.rising(column) == (sorted(set(column)) == [*column])


@settings(deadline=None)
@given(
    st.lists(st.integers(-10, 30) | st.integers(-(2**40), 2**40), max_size=9),
    st.floats(-20, 40) | st.floats(-1e12, 1e12),
    st.sets(st.integers(-5, 20), max_size=5),
    st.integers(0, 3),
)
def test_ages_are_counted_alike(times: list[int], now: float, bounds: set[int], already: int) -> None:
    """Ages are counted in the same buckets, on top of earlier counts, with the same sum of past ages."""
    column, before = array("d", [*sorted(bounds), inf]), array("q", [already]) * (len(bounds) + 1)
    counts, others = before[:], before[:]
    said = compiled.count_ages(array("q", times), now, column, counts)
    assert said == plain.count_ages(array("q", times), now, column, others)
    assert counts == others


def test_columns_of_other_kinds_are_refused() -> None:
    """Other element types are refused, and bounds without an infinite last one, in which a search would not end."""
    times, bounds, counts = array("q", [1]), array("d", [1.0, inf]), array("q", [0, 0])
    assert compiled.count_ages(times, 3.0, bounds, counts) == (1, 1)
    for wrong in (
        (array("i", [1]), bounds, counts),
        (times, array("f", bounds), counts),
        (times, bounds, array("i", counts)),
        (times, bounds, counts[:1]),
        (times, bounds[:1], counts[:1]),
        (times, array("d"), array("q")),
    ):
        with pytest.raises(TypeError):
            compiled.count_ages(wrong[0], 3.0, *wrong[1:])


def test_what_is_no_record_is_refused() -> None:
    """An object that is no record is refused, since its fields would be read at the offsets of a record's."""
    for column in (compiled.sizes_of, compiled.offsets_of):
        with pytest.raises(TypeError):
            column([(1, 2, b"key", b"value", ())])
    with pytest.raises(TypeError):
        compiled.rising(array("i", [1, 2, 3, 4]))
