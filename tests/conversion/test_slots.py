"""Fields that are not mapped are skipped and still checked; a record type in several places is read in each.

A shop's own schema has far more fields than a conversion event; they must cost little and change nothing.
"""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.conversion.codes import Code
from consumer.conversion.layout import MAX_OPERATIONS, Layout
from consumer.conversion.program import COMPILED
from tests.conversion.convert_records import shaped
from tests.conversion.test_compiled import Both, plan_of
from tests.conversion.test_convert import NOW
from tests.engine.building import Read
from tests.support import avro

TEXT = ["null", "string"]
ADDRESS = avro.record("Address", **dict.fromkeys(("first", "last", "street", "city", "zip", "country"), TEXT))
MONEY = avro.record("Money", amount=avro.decimal(12, 2), currency="string")
CHOICE = ["null", "string", "long", avro.array("string")]
LINE = avro.record(
    "Line",
    sku="string",
    price=MONEY,
    tags=avro.array("string"),
    qty="int",
    list_price=["null", "Money"],
    attributes=avro.map_of(TEXT),
    extra=CHOICE,
)
CONTACT = avro.record("Contact", mails=avro.array(TEXT), via="string")
NODE = avro.record("Node", label="string", next=["null", "Node"])
NOT_ASKED = {
    "flag": "boolean", "ratio": "float", "score": "double", "count": "int", "total": "long", "blob": "bytes",
    "hash": avro.fixed("Hash", 4),
    "exact": avro.fixed("Exact", 9, logicalType="decimal", precision=20, scale=3),
    "cents": avro.decimal(5, 2),
    "grade": avro.enum("Grade", "A", "B"),
    "choice": CHOICE,
    "day": avro.logical("int", "date"),
    "notes": avro.map_of(avro.array(TEXT)),
    "nothing": "null",
    "note": TEXT,
}  # fmt: skip
SCHEMA = avro.record(
    "Own",
    id="string",
    kind="string",
    ts="long",
    ship=["null", ADDRESS],
    bill=["null", "Address"],
    lines=["null", avro.array(["null", LINE])],
    sum="Money",
    props=avro.map_of(["null", "string", "long"]),
    trail=NODE,
    email="string",
    codes=avro.array("long"),
    contacts=avro.array(CONTACT),
    handles=["null", avro.array("string"), avro.map_of("string")],
    **NOT_ASKED,
)
MAPPING = """
[event_names]
buy = "checkout"
[fields]
event_id = "id"
event_name = "kind"
event_time = "ts"
"user_data.em" = "contacts[].mails[]"
"user_data.ph" = "codes"
"user_data.external_id" = "email"
"user_data.hashed_maids" = "handles"
"user_data.fn" = "bill.first"
"user_data.ln" = "bill.last"
"user_data.ct" = "ship.city"
"user_data.country" = "ship.country"
"user_data.click_id" = "props.epik"
"custom_data.value" = "sum.amount"
"custom_data.currency" = "sum.currency"
"custom_data.content_ids" = "lines[].sku"
"custom_data.num_items" = "lines[].qty"
"custom_data.content_brand" = "lines[].attributes.brand"
"custom_data.content_category" = "lines[].tags[]"
"custom_data.contents[].id" = "lines[].sku"
"custom_data.contents[].quantity" = "lines[].qty"
"custom_data.contents[].item_price" = "lines[].price.amount"
"custom_data.contents[].item_brand" = "lines[].attributes.brand"
[constants]
action_source = "web"
"""
BOTH = Both((SCHEMA, MAPPING))
EVENTS = shaped(SCHEMA, wild=False).map(lambda event: {**event, "kind": "buy", "ts": int(NOW * 1000)})


@settings(max_examples=200, deadline=None)
@given(event=EVENTS)
def test_it_says_what_the_two_steps_say_in_one_go(event: dict[str, Any]) -> None:
    """Any valid record has the same result as in two steps, and is read in one go."""
    value = BOTH.value(event)
    if value is None:  # as text with half of a surrogate pair
        return
    BOTH.check(value)
    if COMPILED is not None:
        assert BOTH.alone(value) is not None


@settings(max_examples=200, deadline=None)
@given(event=EVENTS, data=st.data())
def test_damage_is_judged_alike_wherever_it_is(event: dict[str, Any], data: st.DataObject) -> None:
    """A damaged record has the same result as in two steps, wherever the damage is."""
    value = BOTH.value(event)
    if value is None:
        return
    at = data.draw(st.integers(0, len(value)))
    junk = data.draw(st.binary(max_size=3))
    BOTH.check(value[:at] + junk + value[at + data.draw(st.integers(0, 3)) :], value)


HEAD = {"id": "string", "kind": "string", "ts": "long", "email": "string"}
HEAD_MAPPING = """
[fields]
event_id = "id"
event_name = "kind"
event_time = "ts"
"user_data.em" = "email"
[constants]
action_source = "web"
"""
HEAD_VALUES = {"id": "e-1", "kind": "checkout", "ts": int(NOW * 1000), "email": "ann@example.com"}


def behind(kind: Any, reader: Any = None) -> tuple[Both, bytes]:
    """Return the readings of a schema whose last field, of this type, is not mapped, and the bytes of all
    fields before it."""
    written = avro.record("Small", **HEAD, last=kind)
    ours = written if reader is None else avro.record("Small", **HEAD, last=reader)
    both, head = (Both((ours, HEAD_MAPPING), written), Both((avro.record("Small", **HEAD), HEAD_MAPPING)))
    value = head.value(HEAD_VALUES)
    assert value is not None
    return both, value


NINE_BYTES = avro.decimal(20, 0)
GRADES = avro.enum("Grade", "A", "B")
STRINGS = avro.array("string")
GOOD = [
    ("string", b"\x06\xe2\x82\xac"),
    ("bytes", b"\x02\xff"),
    ("int", b"\xff\xff\xff\xff\x0f"),
    ("long", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
    ("boolean", b"\x01"),
    ("float", struct.pack("<f", 1.5)),
    ("double", struct.pack("<d", 1.5)),
    (GRADES, b"\x02"),
    (avro.decimal(2, 0), b"\x02\x9d"),
    (avro.decimal(2, 0), b"\x00"),
    (NINE_BYTES, b"\x12" + (10**20 - 1).to_bytes(9, "big")),
    (avro.fixed("F", 2), b"ab"),
    (STRINGS, b"\x01\x04\x02a\x02\x00\x00"),
    (avro.map_of("boolean"), b"\x02\x02k\x01\x00"),
    (["null", "string", "long"], b"\x04\x01"),
    (["string", "null"], b"\x02"),
]
BAD = [
    ("string", b"\x02\xff"),
    ("string", b"\x02\x80"),
    ("string", b"\x04a"),
    ("string", b"\x01"),
    ("bytes", b"\x04a"),
    ("int", b"\x80\x80\x80\x80\x20"),
    ("long", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"),
    ("boolean", b"\x02"),
    ("float", b"abc"),
    ("double", b"abcdefg"),
    (GRADES, b"\x04"),
    (GRADES, b"\x01"),
    (avro.decimal(2, 0), b"\x02\x64"),
    (avro.decimal(2, 0), b"\x02\x9c"),
    (avro.decimal(2, 0), b"\x04\x00"),
    (NINE_BYTES, b"\x12" + (10**20).to_bytes(9, "big")),
    (avro.fixed("F", 2), b"a"),
    (STRINGS, b"\x02\x02\xff\x00"),
    (STRINGS, b"\x01\x01\x02a\x00"),
    (STRINGS, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x00"),
    (STRINGS, b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
    (avro.map_of("boolean"), b"\x02\x02\xff\x01\x00"),
    (avro.map_of("boolean"), b"\x02\x02k\x02\x00"),
    (["null", "string", "long"], b"\x06"),
    (["null", "string", "long"], b"\x01"),
    (avro.record("Pair", u=["null", "string", "long"], s="string"), b"\x06\x02x\x02y"),
    (["string", "null"], b"\x04"),
    (["string", "null"], b"\x80\x00"),
]


@pytest.mark.parametrize(("kind", "last"), GOOD, ids=str)
def test_what_is_right_is_passed_over(kind: Any, last: bytes) -> None:
    """A valid value that is not mapped leaves the record on the fast path."""
    both, head = behind(kind)
    assert isinstance(both.check(head + last)[0], list)
    if COMPILED is not None:
        assert isinstance(both.alone(head + last), Read)


@pytest.mark.parametrize(("kind", "last"), BAD, ids=str)
def test_what_is_wrong_is_refused_though_nobody_asks_for_it(kind: Any, last: bytes) -> None:
    """An invalid value makes the record a dead letter, although it is not mapped."""
    both, head = behind(kind)
    (said,) = both.check(head + last)
    assert said.stage.value == "decode"
    if COMPILED is not None:
        assert both.alone(head + last) is None


@pytest.mark.parametrize(
    ("last", "sent"),
    [
        (b"\x04\x08epik\x02\x02a\x08epik\x02\x02b\x00", "b"),
        (b"\x02\x08epik\x02\x02a\x01\x0c\x08epik\x00\x00", None),
        (b"\x04\x06\xe2\x82\xac\x04\x0e\x08epik\x04\x0e\x00", "7"),
        (b"\x02\x08epic\x02\x02a\x00", None),
        (b"\x02\x02\xff\x00\x00", "no datum"),
        (b"\x02\x08epik\x06\x00", "no datum"),
        (b"\x02\x08epik\x02\x02\xff\x00", "no datum"),
    ],
    ids=str,
)
def test_of_a_key_that_comes_twice_the_last_value_counts(last: bytes, sent: str | None) -> None:
    """Of a key that comes twice, in one block or in two, the last value counts, also null. Keys that are not
    mapped have to be text, too."""
    props = avro.map_of(["null", "string", "long"])
    mapping = HEAD_MAPPING.replace("[constants]", '"user_data.click_id" = "props.epik"\n[constants]')
    both, (_, head) = Both((avro.record("Small", **HEAD, props=props), mapping)), behind("string")
    (said,) = both.check(head + last)
    if sent == "no datum":
        assert said.stage.value == "decode"
    else:
        assert isinstance(said, list)
        assert (f'"click_id":"{sent}"' in str(said)) == (sent is not None)


@pytest.mark.parametrize(
    ("writer", "reader", "last"),
    [
        (GRADES, {**GRADES, "symbols": ["A"]}, b"\x02"),
        (avro.decimal(4, 3), avro.decimal(4, 2), b"\x02\x01"),
        (["null", "string"], "string", b"\x00"),
    ],
    ids=str,
)
def test_what_our_schema_has_no_place_for_is_refused_though_nobody_asks(
    writer: Any, reader: Any, last: bytes
) -> None:
    """A symbol, digits or a branch that our schema lacks are refused, although the field is not mapped."""
    both, head = behind(writer, reader)
    (said,) = both.check(head + last)
    assert said.stage.value == "decode"


def operations_of(schema: dict[str, Any]) -> list[Any]:
    """Return the operations of a schema's program under the small mapping."""
    both = Both((schema, HEAD_MAPPING))
    return layout_of(both).operations


def layout_of(both: Both) -> Layout:
    """Return the layout of the program: where the values of the writer's records go."""
    plan = plan_of(both.decoder, both.framing)
    mapping = both.converter.descriptions[0].mapping
    return Layout(plan, mapping.asked, mapping.item_steps)


def test_a_schema_that_doubles_with_each_level_has_a_bounded_program() -> None:
    """In a schema that doubles with each level, records are called from a number of operations on, so that the
    program is bounded."""
    kind: Any = avro.record("R0", a="string")
    for level in range(1, 25):
        kind = avro.record(f"R{level}", a=kind, b=f"R{level - 1}")
    operations = operations_of(avro.record("Small", **HEAD, last=kind))
    assert MAX_OPERATIONS <= len(operations) < 1.1 * MAX_OPERATIONS
    assert any(code == Code.CALL for code, *_ in operations)


def test_a_wide_union_is_a_call() -> None:
    """A wide union is a call, since its last branch takes a step for each before it: an array of them would
    take long."""
    branches = [avro.record(f"B{number}") for number in range(200)]
    both, head = behind(avro.array(branches))
    assert any(code == Code.CALL for code, *_ in operations_of(both.schema))
    assert isinstance(both.check(head + b"\x04\x8e\x03\x02\x00")[0], list)


ITEM = avro.record("Item", sku=TEXT)
ITEMS_MAPPING = HEAD_MAPPING.replace(
    "[constants]\n", '"custom_data.contents[].id" = "last[].sku"\n[constants]\n'
)


@pytest.mark.parametrize(
    ("item", "last", "contents"),
    [
        (["null", ITEM], b"\x00", b""),
        (["null", ITEM], b"\x08\x00\x02\x00\x02\x02\x02x\x00\x00", b'"contents":[{"id":"x"}]'),
        (ITEM, b"\x04\x00\x02\x02x\x00", b'"contents":[{"id":"x"}]'),
        ([ITEM, "null"], b"\x04\x02\x00\x02\x02x\x00", b'"contents":[{"id":"x"}]'),
    ],
)
def test_a_null_item_is_omitted(item: Any, last: bytes, contents: bytes) -> None:
    """A null item, and one without fields to send, is omitted; the others are read on the fast path."""
    schema = avro.record("Small", **HEAD, last=avro.array(item))
    both, head = Both((schema, ITEMS_MAPPING)), Both((avro.record("Small", **HEAD), HEAD_MAPPING))
    value = head.value(HEAD_VALUES)
    assert value is not None
    (said,) = both.check(value + last)
    assert (b'"contents"' in said[5], contents in said[5]) == (bool(contents), True)
    if COMPILED is not None:
        assert isinstance(both.alone(value + last), Read)


def test_null_items_take_no_memory() -> None:
    """Null items take a byte of the record each and no memory, so that a million of them do no harm."""
    if COMPILED is None:
        pytest.skip("the package was built without a C compiler")
    schema = avro.record("Small", **HEAD, last=avro.array(["null", ITEM]))
    both, head = Both((schema, ITEMS_MAPPING)), Both((avro.record("Small", **HEAD), HEAD_MAPPING))
    value = head.value(HEAD_VALUES)
    assert value is not None
    maximum = value + b"\xa0\x9c\x01" + bytes(10_000) + b"\x00"
    many = value + b"\x80\xa4\xe8\x03" + bytes(4_000_000) + b"\x00"
    tracemalloc.start()
    try:
        assert isinstance(both.alone(maximum), Read)
        assert both.alone(many) is None
        (said,) = both.check(many)
        assert said.code == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_what_nests_deeper_than_a_program_is_a_call() -> None:
    """Types that are nested deeper than a program goes are a call, so that recursion in C is bounded."""
    kind: Any = "string"
    for _ in range(40):
        kind = avro.array(kind)
    both, head = behind(kind)
    assert any(code == Code.CALL for code, *_ in operations_of(both.schema))
    assert isinstance(both.check(head + b"\x02" * 40 + b"\x02x" + b"\x00" * 40)[0], list)


def test_a_long_list_of_itself_is_left_to_python() -> None:
    """A record that holds itself is a call, since its depth comes from the data; one that is too deep is a dead
    letter."""
    both, head = behind(NODE)
    short, long = (b"\x02n\x02" * count + b"\x02n\x00" for count in (3, 100_000))
    assert isinstance(both.check(head + short)[0], list)
    (said,) = both.check(head + long)
    assert said.stage.value == "decode"


def test_only_what_is_asked_for_is_made() -> None:
    """The program makes only the mapped fields of lines and addresses."""
    layout = layout_of(BOTH)
    (items,) = (one for one in layout.operations if one[0] == Code.ITEMS)
    (trail,) = (one for one in layout.operations if one[0] == Code.CALL)
    texts = {"id", "kind", "ts", "email", "codes", "contacts", "handles", "amount", "currency"}
    assert layout.width == len(texts | {"first", "last", "city", "country"} | {"lines", "props"})
    assert items[2] == len({"sku", "qty", "price.amount", "attributes", "tags"})
    assert trail[1] < 0
