"""A rule's answers are remembered in bounded number, and never given for another value."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from consumer.conversion.fields import fields_in
from consumer.conversion.rules import LONGEST_REMEMBERED, MAX_REMEMBERED, Memory
from tests.conversion.test_compiled import Both
from tests.conversion.test_convert import SCHEMA, event_of


def test_a_rule_is_asked_once_for_a_text() -> None:
    """A rule is asked once for a text; after that its answer is looked up."""
    asked: list[str] = []

    def rule(value: str) -> str:
        asked.append(value)
        return value.upper()

    memory = Memory(rule)
    assert [memory(value) for value in ("de", "fr", "de", "de")] == ["DE", "FR", "DE", "DE"]
    assert asked == ["de", "fr"]


def test_it_is_bounded_however_many_values_come() -> None:
    """Neither many new values nor a few giant ones fill the memory."""
    memory = Memory(str.upper)
    for number in range(3 * MAX_REMEMBERED):
        assert memory(f"a{number}") == f"A{number}"
        assert len(memory) <= MAX_REMEMBERED
    memory.clear()
    assert memory("x" * LONGEST_REMEMBERED) == "X" * LONGEST_REMEMBERED
    assert memory("x" * (LONGEST_REMEMBERED + 1)) == "X" * (LONGEST_REMEMBERED + 1)
    assert list(memory) == ["x" * LONGEST_REMEMBERED]


VALUES = st.one_of(
    st.text(max_size=3), st.sampled_from([0, 1, 1.0, True, False, Decimal(1), "1", b"1", None, (1,), (True,)])
)


@given(st.lists(VALUES, max_size=30))
def test_equal_values_of_other_types_never_get_each_others_answer(values: list[Any]) -> None:
    """1, 1.0 and True are equal and hash alike, so only text is remembered."""

    def rule(value: Any) -> tuple[type, Any]:
        return type(value), value

    memory = Memory(rule)
    for value in values:
        assert memory(value) == (type(value), value)
    assert all(type(key) is str for key in memory)


def test_one_memory_by_field_for_all_schemas() -> None:
    """All schemas of a process share one memory for each field."""
    both = Both((SCHEMA, None))
    asked = [field.ask for field in fields_in(both.converter.descriptions[0].user_data)]
    memories = [one for one in asked if isinstance(one, Memory)]
    both.check(both.value(event_of({})))
    both.compiled._written.clear()
    both.check(both.value(event_of({})))
    assert memories
    assert [field.ask for field in fields_in(both.converter.descriptions[0].user_data)] == asked
