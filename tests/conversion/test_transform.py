"""``PINSTREAM_TRANSFORM``: what the function gets, what it may return, and what an exception of it becomes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.encode import Encoder
from consumer.conversion.transform import FILTERED, Transformer, load_transform
from consumer.engine.model import CommerceEvent, Record, Rejection, Stage
from consumer.errors import SettingsError
from tests.end_to_end.records import SCHEMA as COMMERCE
from tests.end_to_end.records import commerce_event
from tests.support import avro

_MILLIS = avro.logical("long", "timestamp-millis")
_ITEM = avro.record(
    "Item",
    avro.field("sku", "string"),
    avro.field("at", _MILLIS),
    avro.field("parts", avro.array("Item"), default=[]),
)
SCHEMA: dict[str, Any] = {"namespace": "shop", **avro.record(
    "Order",
    id="string", paid="boolean", number="int", big="long", weight="double", raw="bytes", hash=avro.fixed("Hash", 4),
    state=avro.enum("State", "NEW", "SENT"), total=avro.decimal(12, 2), uuid=avro.logical("string", "uuid"),
    day=avro.logical("int", "date"), clock=avro.logical("long", "time-micros"), millis=_MILLIS,
    micros=avro.logical("long", "timestamp-micros"), nanos=avro.logical("long", "timestamp-nanos"),
    wall=avro.logical("long", "local-timestamp-millis"), maybe=["null", _MILLIS],
    either=["null", "double", "long", "string"], tags=avro.array("string"), labels=avro.map_of("string"),
    items=avro.array(_ITEM),
)}  # fmt: skip
MOMENT = datetime(2026, 3, 1, 12, 0, 0, 123456, UTC)
MICROS = 1772366400_123456
EVENT: CommerceEvent = {
    "id": "o-1",
    "paid": True,
    "number": 3,
    "big": 2**40,
    "weight": 0.5,
    "raw": b"\x00\xff",
    "hash": b"abcd",
    "state": "NEW",
    "total": Decimal("59.90"),
    "uuid": "2f1c5f3e-0a64-4a4c-8a3f-111111111111",
    "day": 20513,
    "clock": 3_600_000_001,
    "millis": MICROS // 1000,
    "micros": MICROS,
    "nanos": MICROS * 1000 + 7,
    "wall": MICROS // 1000,
    "maybe": MICROS // 1000,
    "either": 5,
    "tags": ["a", "b"],
    "labels": {"k": "v"},
    "items": [{"sku": "7", "at": 0, "parts": [{"sku": "8", "at": 1, "parts": []}]}],
}
GIVEN: dict[str, Any] = {
    **EVENT,
    "day": date(2026, 3, 1),
    "clock": time(1, 0, 0, 1),
    "millis": MOMENT.replace(microsecond=123000),
    "micros": MOMENT,
    "wall": MOMENT.replace(microsecond=123000, tzinfo=None),
    "maybe": MOMENT.replace(microsecond=123000),
    "items": [
        {
            "sku": "7",
            "at": datetime(1970, 1, 1, tzinfo=UTC),
            "parts": [{"sku": "8", "at": datetime(1970, 1, 1, 0, 0, 0, 1000, UTC), "parts": []}],
        }
    ],
}


def decoded() -> CommerceEvent:
    """`EVENT`, written and read, as a record of Kafka is."""
    value = Encoder(SCHEMA).encode(EVENT)
    event = Decoder(OneSchema(SCHEMA)).decode(Record(0, 0, None, value, ()))
    assert isinstance(event, dict)
    return event


def applied(function: Callable[[Any], Any]) -> Any:
    """The outcome of `EVENT` with this function."""
    return Transformer(function, "shop.events:clean", SCHEMA).apply(decoded())


def changing(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that sets these fields."""
    return lambda record: record | changes


def refused(function: Callable[[Any], Any], code: str = "transform_misfit") -> str:
    """The message of the dead letter that this function causes."""
    verdict = applied(function)
    assert isinstance(verdict, Rejection), verdict
    assert (verdict.stage, verdict.code) == (Stage.CONVERT, code)
    assert verdict.message.isprintable()
    assert len(verdict.message) <= 501
    return verdict.message


# -- what it gets and gives


def test_the_function_gets_plain_python() -> None:
    """Each Avro type becomes the Python type of the page's table; nanoseconds, which Python does not have, stay
    a number."""
    seen: list[dict[str, Any]] = []

    def check(record: dict[str, Any]) -> None:
        seen.append(record)

    assert applied(check) == FILTERED
    assert seen == [GIVEN]
    assert [type(value) for value in seen[0].values()] == [type(value) for value in GIVEN.values()]


def test_a_record_that_is_returned_unchanged_is_the_decoded_one() -> None:
    """Value by value and type by type: a function that changes nothing leaves every event as it is."""
    assert applied(lambda record: record) == EVENT
    assert type(applied(lambda record: record)["either"]) is int


def test_every_commerce_event_comes_through_unchanged() -> None:
    """The packaged schema, with its unions and defaults."""
    value = Encoder(COMMERCE).encode(commerce_event("e-1"))
    event, again = (Decoder(OneSchema(COMMERCE)).decode(Record(0, 0, None, value, ())) for _ in range(2))
    assert isinstance(again, dict)
    assert Transformer(lambda record: record, "a:b", COMMERCE).apply(again) == event


def test_what_it_changes_is_what_is_converted() -> None:
    """Amounts stay exact, times become counts of the schema's unit again, and None is the same as a missing field."""

    def change(record: dict[str, Any]) -> dict[str, Any]:
        record["total"] = record["total"] * 2 - Decimal("0.1")
        record["millis"] += timedelta(seconds=1)
        record["micros"] = datetime(2026, 3, 1, 14, 0, 0, 123456, timezone(timedelta(hours=2)))
        record["day"] += timedelta(days=1)
        record["id"] = None
        del record["state"]
        record["tags"] = ("x",)
        return record

    event = applied(change)
    assert event["total"] == Decimal("119.70")
    assert event["millis"] == EVENT["millis"] + 1000
    assert event["micros"] == MICROS
    assert event["day"] == EVENT["day"] + 1
    assert (event["id"], event["state"], event["tags"]) == (None, None, ["x"])


def test_a_time_that_python_cannot_hold_stays_a_number() -> None:
    """A record may hold any count: the function gets it, and may return it."""
    seen: list[dict[str, Any]] = []

    def check(record: dict[str, Any]) -> dict[str, Any]:
        seen.append(dict(record))
        return record

    far: dict[str, Any] = {"micros": 2**62, "day": 2**31 - 1}
    assert Transformer(check, "a:b", SCHEMA).apply(decoded() | far) == EVENT | far
    assert (seen[0]["micros"], seen[0]["day"]) == (2**62, 2**31 - 1)


def test_records_share_nothing() -> None:
    """A function that keeps what it returned, and changes it later, does not change the event; nor do two records."""
    kept: list[dict[str, Any]] = []

    def keep(record: dict[str, Any]) -> dict[str, Any]:
        kept.append(record)
        return record

    one = applied(keep)
    kept[0]["items"][0]["sku"] = "changed"
    kept[0]["tags"].append("changed")
    assert one == EVENT
    assert applied(lambda record: record) == EVENT


def test_a_whole_number_may_be_of_a_subclass() -> None:
    """Members of an `IntEnum` are such: the value is taken at once, as a plain number of its own size."""

    class Size(IntEnum):
        LARGE = 7

    taken = applied(changing(number=Size.LARGE, big=Size.LARGE))
    assert isinstance(taken, dict)
    assert (type(taken["number"]), taken["number"], type(taken["big"])) == (int, 7, int)


# -- what it must not return


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda _: "secret", "returned a str, neither a dict nor None"),
        (lambda record: [record], "returned a list"),
        (lambda record: (record for _ in "x"), "returned a generator"),
        (lambda _: 5, "returned an int"),
        (lambda record: record["id"] and True, "returned a bool"),
        (changing(totl=1), "a key that is no field of shop.Order (the nearest is total): add the field to"),
        (changing(**{"jane@example.com": 1}), "a key that is no field of shop.Order: add the field to"),
        (lambda record: record | {7: 1}, "a key that is no field of shop.Order:"),
        (
            changing(total=59.9),
            "field total: expected a Decimal of at most 12 digits, 2 of them after the point",
        ),
        (changing(total=Decimal("59.901")), "field total: expected a Decimal of at most 12 digits"),
        (changing(total=Decimal("NaN")), "field total"),
        (changing(total=Decimal("1e999999")), "field total"),
        (changing(total=True), "field total"),
        (changing(number="3"), "field number: expected a whole number of 32 bits"),
        (changing(number=2**31), "field number: expected a whole number of 32 bits"),
        (changing(big=2**63), "field big: expected a whole number of 64 bits"),
        (changing(paid=1), "field paid: expected true or false"),
        (changing(id=b"x"), "field id: expected text"),
        (changing(id="\ud800"), "field id: expected text, found half of a surrogate pair"),
        (changing(raw="x"), "field raw: expected bytes"),
        (changing(hash=b"x"), "field hash: expected 4 bytes"),
        (changing(state="LOST"), "field state: expected a symbol of shop.State"),
        (changing(micros=datetime(2026, 3, 1)), "field micros: expected a datetime with a zone"),
        (changing(wall=MOMENT), "field wall: expected a datetime without a zone"),
        (changing(day=MOMENT), "field day: expected a date, or a whole number (date)"),
        (changing(micros="2026-03-01T12:00:00Z"), "field micros: expected a datetime"),
        (changing(either=[]), "field either: expected one of: null, double, long, string"),
        (changing(tags="ab"), "field tags: expected a list"),
        (changing(tags=["a", 1]), "field tags[1]: expected text"),
        (changing(tags=["a"] * 10_001), "field tags: a list of more than 10,000 items"),
        (changing(labels={"jane@example.com": 1}), "field labels.*: expected text"),
        (changing(labels={1: "x"}), "field labels.*: expected text as keys"),
        (
            changing(items=[{"sku": "7", "colour": 1}]),
            "field items[0]: has a key that is no field of shop.Item",
        ),
        (changing(items={}), "field items: expected a list"),
        (changing(id="x" * (17 << 20)), "more than 200,000 values or 16 MiB of text"),
        (changing(raw=bytearray(17 << 20)), "more than 200,000 values or 16 MiB of text"),
        (changing(items=[{"sku": "7", "parts": [{"sku": "8"}] * 9_000}] * 9_000), "more than 200,000 values"),
    ],
)
def test_nonsense_is_a_dead_letter_that_says_where(function: Callable[[Any], Any], said: str) -> None:
    """Types and fields of the schema are named; a value, or a key made of one, never is."""
    message = refused(function)
    assert said in message
    assert "jane" not in message
    assert "secret" not in message
    assert "59.9" not in message


def test_a_record_that_contains_itself_is_a_dead_letter() -> None:
    """It neither hangs nor uses up the memory."""

    def cyclic(record: dict[str, Any]) -> dict[str, Any]:
        record["items"][0]["parts"] = record["items"]
        return record

    assert "contains itself" in refused(cyclic)


def test_a_coroutine_that_is_returned_is_closed(recwarn: pytest.WarningsRecorder) -> None:
    """A wrapped async function cannot be recognised at the start; each record says so, without a warning of Python."""

    async def clean(record: dict[str, Any]) -> dict[str, Any]:
        return record

    assert "returned a coroutine" in refused(lambda record: clean(record))
    assert not [one for one in recwarn if "never awaited" in str(one.message)]


def test_an_object_that_raises_when_it_is_read_is_a_dead_letter() -> None:
    """A result may be of any class."""

    class Nasty(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            raise OSError("secret")

        __contains__ = __getitem__ = __iter__ = get

    assert refused(lambda _: Nasty()).endswith("returned values that cannot be read (OSError)")


# -- exceptions


def write(folder: Path, text: str, name: str = "events") -> None:
    """Write a module of the package `shopcode`."""
    package = folder / "shopcode"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / f"{name}.py").write_text(text)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where Python looks for modules, forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [one for one in sys.modules if one.partition(".")[0] == "shopcode"]:
        del sys.modules[name]


RAISING = """
import sys
from decimal import Decimal

def inner(record):
    return Decimal(record["id"])

def clean(record):
    return {"id": inner(record)}

def leave(record):
    sys.exit(record["id"])

def deep(record):
    return deep(record)

def stop(record):
    raise StopIteration(record["id"])
"""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("clean", "raised InvalidOperation at shopcode.events:6"),
        ("leave", "raised SystemExit at shopcode.events:12"),
        ("deep", "raised RecursionError at shopcode.events:15"),
        ("stop", "raised StopIteration at shopcode.events:18"),
    ],
)
def test_an_exception_is_a_dead_letter_with_its_type_and_place(folder: Path, name: str, said: str) -> None:
    """The innermost line of the user's own package, and never the exception's text, which quotes the record."""
    write(folder, RAISING)
    function = load_transform(f"shopcode.events:{name}")
    verdict = Transformer(function, f"shopcode.events:{name}", SCHEMA).apply(decoded())
    assert verdict == Rejection(
        Stage.CONVERT, "transform_failed", f"PINSTREAM_TRANSFORM shopcode.events:{name} {said}"
    )


# -- at start


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "nowhere.events:clean", "there is no module 'nowhere' in the folders where Python looks; add"),
        ("", "shopcode.missing:clean", "there is no module 'shopcode.missing'"),
        ("import nowhere", "shopcode.events:clean", "shopcode.events imports 'nowhere', which is not installed"),
        ("1/0", "shopcode.events:clean", "cannot be imported: ZeroDivisionError at shopcode.events:1; correct"),
        ("x = (", "shopcode.events:clean", "cannot be imported: SyntaxError; correct the module"),
        ("import sys; sys.exit('secret')", "shopcode.events:clean", "cannot be imported: SystemExit"),
        ("def clean_it(r): ...", "shopcode.events:clean", "no 'clean'; did you mean clean_it?"),
        ("", "shopcode.events:clean", "shopcode.events has no 'clean'; correct the name"),
        ("clean = 5", "shopcode.events:clean", "it is not a function; name a function that takes a record"),
        ("class clean: ...", "shopcode.events:clean", "it is a class; name a function"),
        ("async def clean(r): ...", "shopcode.events:clean", "it is an async function; define it with def"),
        ("async def clean(r): yield r", "shopcode.events:clean", "it is an async function"),
        ("def clean(r): yield r", "shopcode.events:clean", "it is a generator; one record comes in"),
        ("def clean(): ...", "shopcode.events:clean", "it cannot be called with one argument, the record"),
        ("def clean(a, b, c, d): ...", "shopcode.events:clean", "or as def function(record, record_type, origin)"),
        ("class C:\n  async def __call__(self, r): ...\nclean = C()", "shopcode.events:clean",
         "it is an async function"),
    ],
)  # fmt: skip
def test_what_cannot_be_the_function_is_an_error_at_start(
    folder: Path, text: str, name: str, said: str
) -> None:
    """One line that names the setting and says what to do."""
    write(folder, text)
    with pytest.raises(SettingsError) as caught:
        load_transform(name)
    message = str(caught.value)
    assert message.startswith(f"PINSTREAM_TRANSFORM={name!r}: ")
    assert said in message
    assert "\n" not in message
    assert "secret" not in message


@pytest.mark.parametrize(
    "text",
    [
        "def clean(record): return record",
        "def clean(record, *, strict=False, **more): return record",
        "clean = lambda record: record",
        "class C:\n  def __call__(self, record): return record\nclean = C()",
        "import functools\ndef f(x, record): return record\nclean = functools.partial(f, 1)",
        "clean = dict.copy",
    ],
)
def test_what_takes_a_record_is_a_function(folder: Path, text: str) -> None:
    """Any object that can be called with one argument is accepted."""
    write(folder, text)
    name = "shopcode.events:clean"
    assert Transformer(load_transform(name), name, SCHEMA).apply(decoded()) == EVENT


def test_one_that_needs_two_arguments_gets_the_record_s_type(folder: Path) -> None:
    """Sections have several types, and not all of them can be told apart by their fields; a default is its own."""
    name = "shopcode.events:clean"
    write(folder, 'def clean(record, kind): record["id"] = kind; return record')
    taken = Transformer(load_transform(name), name, SCHEMA).apply(decoded())
    assert isinstance(taken, dict)
    assert taken["id"] == "shop.Order"
    name = "shopcode.others:clean"
    write(folder, 'def clean(record, kind="own"): record["id"] = kind; return record', "others")
    taken = Transformer(load_transform(name), name, SCHEMA).apply(decoded())
    assert isinstance(taken, dict)
    assert taken["id"] == "own"


def test_the_name_of_an_exception_may_hold_a_value(folder: Path) -> None:
    """It is shown only if it is a name."""
    write(folder, 'def clean(record): raise type(f"no {record}", (Exception,), {})()')
    name = "shopcode.events:clean"
    verdict = Transformer(load_transform(name), name, SCHEMA).apply(decoded())
    assert isinstance(verdict, Rejection)
    assert verdict.message == f"PINSTREAM_TRANSFORM {name} raised an exception at shopcode.events:1"


def test_a_field_that_is_omitted_takes_no_value_of_another_one() -> None:
    """Its alias may be the name that another field has now: then the value belongs to that field."""
    fields = [
        avro.field("order_id", ["null", "string"], aliases=["id"], default=None),
        avro.field("id", "string"),
    ]
    schema = avro.record("Order", *fields)
    transformer = Transformer(lambda record: {"id": record["id"]}, "shop.events:clean", schema)
    assert transformer.apply({"order_id": "o-1", "id": "e-1"}) == {"order_id": None, "id": "e-1"}
