"""The target of the fast path: decoding and converting in one go says what the two steps say, whatever the bytes.

`tests.conversion.test_compiled` says what is compared, and how. There hypothesis writes events and damages them a
little; here bytes are what the fuzzer makes of them, coverage-guided where it can be, under the shapes of schema that
have a branch of their own. What runs in C has no coverage; the same reading written as Python, which is held against
the same, has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any, Final, NamedTuple

from tests.conversion.convert_records import SETUPS
from tests.conversion.test_compiled import Both
from tests.conversion.test_compiled_shapes import EVENT, TEXTS, WIDE, WIDE_NAMES, A, B, deep, held, schema_of
from tests.conversion.test_convert import NOW
from tests.fuzzing.contract import bounded
from tests.fuzzing.provider import DataProvider
from tests.fuzzing.writers import WRITERS
from tests.support import avro
from tests.support.avro import optional
from tests.support.avro import record as record_of

__all__ = ["MORE_OF_AN_OLDER", "NOW", "OF_THE_SHOP", "OLDER", "SHAPES", "both_of", "fast_path"]

_MAX_BESIDE: Final = 3
"""The most records of an input before its last two."""


class RecordShape(NamedTuple):
    """What makes both readings of a schema and a mapping, and the events to begin with."""

    make: Callable[[], Both]
    events: tuple[Any, ...] = ()


def _mapped(line: str, ours: tuple[Any, ...], theirs: tuple[Any, ...], *values: Any) -> RecordShape:
    """An event with an optional field `p` of such types, from which the mapping takes what `line` says."""
    setup = (schema_of(optional("p", *ours)), f"[fields]\n{line}")
    writer = schema_of(optional("p", *theirs))
    return RecordShape(lambda: Both(setup, writer), tuple({**EVENT, "p": value} for value in (None, *values)))


_RICH: Final = {
    "id": "e-1",
    "kind": "checkout",
    "at": int(NOW * 1e6) - 5,
    "where": "web",
    "props": {"out": False, "lang": "de-AT", "battery": 0.5, "consent": "yes", "key": "k"},
    "born": "1996-03-14",
    "mail": ["a@b.c", None],
    "maid": "AEBE52E7-03EE-455A-B3C4-E57283966239",
    "lines": [
        {
            "products": [
                {"id": 7, "price": 1.5, "size": 2.0, "parent": None},
                {
                    "id": "x",
                    "price": "2.50",
                    "size": None,
                    "parent": {"id": "y", "price": None, "size": 1.0, "parent": None},
                },
            ]
        }
    ],
    "paid": Decimal("12.50"),
}
_ITEM: Final = record_of("L", q=["null", B], n=["null", "long", "double", "string"], f="boolean")
_ITEMS: Final = (avro.array(_ITEM),)

OF_THE_SHOP: Final = (0, 1)
"""The shapes whose writer's schema is ours."""
OLDER: Final = 2
"""The shape whose writer's schema is ours as an older producer has it."""
MORE_OF_AN_OLDER: Final[Mapping[str, Any]] = {
    "zoo": {
        "null": None,
        "flag": True,
        "number": 3,
        "amount": Decimal("1.5000"),
        "day": 7,
        "at": 1,
        "uuid": bytes(16),
        "colour": "GREEN",
        "props": {"a": None, "b": "x"},
        "floats": [1.5],
        "tree": {"left": None, "kids": [], "by": {}},
        "blob": b"x",
    },
    "notes": {"n": b"1"},
}
"""What the older producer writes beside an event of ours."""
SHAPES: Final = (
    RecordShape(lambda: Both(SETUPS["default"])),
    RecordShape(lambda: Both(SETUPS["overlaid"])),
    RecordShape(lambda: Both(SETUPS["default"], WRITERS[2])),
    RecordShape(lambda: Both(SETUPS["rich"]), (_RICH,)),
    _mapped('"custom_data.content_name" = "p.y"', (A, B, TEXTS), (B, A), {"y": "1"}, {"x": "1"}),
    _mapped('"custom_data.content_name" = "p.y"', (A, TEXTS), (TEXTS,), {"y": "1", "z": ""}),
    _mapped(
        '"custom_data.contents[].id" = "p[].q.y"\n"custom_data.contents[].quantity" = "p[].n"\n'
        '"custom_data.num_items" = "p[].n"',
        _ITEMS,
        _ITEMS,
        [{"q": {"y": "1"}, "n": 2, "f": True}, {"q": None, "n": "3", "f": False}],
    ),
    _mapped(f'"device_info.brand" = "p.{WIDE_NAMES[-1]}"', (WIDE,), (WIDE,), dict.fromkeys(WIDE_NAMES, "1")),
    _mapped(f'"device_info.brand" = "p{".d" * 11}.x"', (deep(11),), (deep(11),), held(11), held(5)),
)


@cache
def both_of(shape: int) -> Both:
    """The readings of a shape, made once: what they keep between records must change nothing."""
    return SHAPES[shape].make()


def fast_path(data: bytes) -> None:
    """A few records of one shape, read together."""
    provider = DataProvider(data)
    both = both_of(provider.below(len(SHAPES)))
    bodies = [provider.sized() for _ in range(provider.below(_MAX_BESIDE))]
    values = [both.framing + body for body in (*bodies, provider.rest())]
    with bounded(sum(map(len, values)) * 3):
        both.check(*values)
