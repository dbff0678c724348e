"""Decoding and converting in one go gives the result of decoding and converting, for every record.

The program is also tested alone: if it left every record to the two steps, nothing would be compared.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import fastavro
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.avro.decode import Decoder, OneSchema, framing_of
from consumer.avro.reading import MAX_ITEMS
from consumer.conversion.converter import Converter
from consumer.conversion.decisions import BY_AGE, REFUSALS
from consumer.conversion.fields import MARKS
from consumer.conversion.program import COMPILED, write_program
from consumer.conversion.reading import MAX_PROGRAMS, CompiledReading, Written
from consumer.engine.figures.delivered import COUNTED, ITEM_ID, written_in
from consumer.engine.messages import Assigned, Assignment, Fetched
from consumer.engine.model import REAL_API, Chunk, Instant, Policy, Record, Rejection, SchemaRef, Untimely
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import KEY_BYTES, TOMBSTONE, Columns, Keys, TwoSteps, packed_value
from tests.conversion.convert_records import SETUPS, likely, shaped
from tests.conversion.test_convert import CASES, DEFAULT, NOW, SCHEMA, WEEK, event_of
from tests.engine.building import Read, read_by
from tests.support import avro
from tests.support.mapping import load_mapping

Setup = tuple[dict[str, Any], str | None]


def plan_of(decoder: Decoder, framing: bytes) -> Any:
    """Return the plan by which records of this framing are read."""
    return decoder.find(Record(0, -1, None, framing, ()), framing, "").plan


class Both:
    """The compiled reading and the two steps for one schema and mapping, with converters of their own.

    There are two readings in two steps: with a decoder that reads the whole record, and with one that reads what the
    mapping asks for, as in the service.
    """

    def __init__(self, setup: Setup, writer: dict[str, Any] | None = None, **more: Any) -> None:
        self.schema, overlay = setup
        self.writer = self.schema if writer is None else writer
        self.parsed = fastavro.parse_schema(self.writer)
        mapping = load_mapping(overlay, self.schema, default_toml=DEFAULT)

        def converter() -> Converter:
            keys = {"accounts": ("11", "22"), "max_event_age": WEEK, **more}
            return Converter(mapping, **keys)

        self.decoder, self.converter = Decoder(OneSchema(self.schema, mapping.asked)), converter()
        self.whole = Decoder(OneSchema(self.schema, mapping.asked), whole=True)
        ref = SchemaRef("id", "7")
        self.learn(ref, self.writer)
        self.framing = framing_of(ref)
        # The same twice: once without the processor's own instructions for SHA-256.
        self.compiled = CompiledReading(self.decoder, self.converter)
        self.portable = CompiledReading(self.decoder, self.converter)
        self.two_steps = TwoSteps(self.whole, converter())
        self.trimmed = TwoSteps(self.decoder, converter())
        plan = plan_of(self.decoder, self.framing)
        # Made here, so that a program that cannot be made fails the test, instead of a reading in two steps.
        self.function = write_program(self.converter.descriptions[0], plan)
        self.compiled._written[self.framing, 1] = Written(plan, self.function)
        self.portable._written[self.framing, 1] = Written(plan, self.function)

    def bounds(self, now: float) -> tuple[float, float]:
        """Return the bounds on event times that the program takes at `now`."""
        return self.converter.descriptions[0].decisions.bounds(now)

    def learn(self, ref: SchemaRef, schema: dict[str, Any]) -> None:
        """Teach both decoders the schema that `ref` names."""
        for decoder in (self.decoder, self.whole):
            assert decoder.add_schema(ref, schema) is None

    def value(self, event: Any) -> bytes | None:
        """Return the record's value; None if the event cannot be written."""
        out = io.BytesIO(self.framing)
        out.seek(len(self.framing))
        try:
            fastavro.schemaless_writer(out, self.parsed, event)
        except (ValueError, OverflowError, TypeError, UnicodeEncodeError):
            return None
        return out.getvalue()

    def check(self, *values: bytes | None, headers: Any = ()) -> list[Any]:
        """Return what the readings say of these values; assert that all say the same."""
        records = [Record(at, -1, None, value, headers) for at, value in enumerate(values)]
        said = [comparable_row(one) for one in read_by(self.two_steps, records, NOW)]
        assert [comparable_row(one) for one in read_by(self.trimmed, records, NOW)] == said
        assert [comparable_row(one) for one in read_by(self.compiled, records, NOW)] == said
        if COMPILED is not None:
            COMPILED.hash_with_instructions(False)
            assert [comparable_row(one) for one in read_by(self.portable, records, NOW)] == said
            COMPILED.hash_with_instructions(True)
        return said

    def alone(self, value: bytes) -> Any:
        """Return the program's own result; None if it leaves the record to the two steps."""
        if self.function is None:
            pytest.skip("the package was built without a C compiler")
        alone = Alone(self)
        read = read_by(alone, [Record(0, -1, None, value, ())], NOW)
        return None if alone.in_two_steps else read[0]


class Alone:
    """Reads with the program alone; a record that it leaves to the two steps is counted and becomes a tombstone."""

    def __init__(self, both: Both) -> None:
        assert both.function is not None
        self._function, self._both = both.function, both
        self.in_two_steps = 0

    def read(
        self,
        records: Sequence[Record | None],
        now: float,
        columns: Columns,
        topic: str = "",
        partition: int = -1,
    ) -> None:
        framing, bounds = self._both.framing, self._both.bounds(now)
        origin = self._both.decoder.origin(1, topic, partition)
        self._function(records, columns, framing, len(framing), *bounds, origin)
        while len(columns) < len(records):
            columns.add(TOMBSTONE)
            self.in_two_steps += 1


def comparable_row(read: Any) -> Any:
    """Return everything that is said of a record, with its warnings in one order.

    Assert that what it says is written is what the JSON has, since coverage counts it.
    """
    if not isinstance(read, Read):
        return read
    assert read.written == written_in(orjson.loads(read.body))
    assert read.value == packed_value(orjson.loads(read.body).get("custom_data", {}))
    fields = (read.account, read.name, read.key, read.time, read.offline, read.body)
    return [*fields, sorted(read.warnings)]


BOTH = {name: Both(setup) for name, setup in SETUPS.items()}
RECORDS = {name: shaped(SETUPS[name][0], wild=False) for name in SETUPS}


@pytest.mark.parametrize("name", SETUPS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_it_says_what_the_two_steps_say(name: str, data: st.DataObject) -> None:
    """Events, rejections, warnings and filtered records are the same as in two steps, under three schemas and
    mappings."""
    both = BOTH[name]
    event = data.draw(RECORDS[name])
    if data.draw(st.sampled_from([True, True, True, False])):
        event = likely(event)
    value = both.value(event)
    if value is not None:
        both.check(value)


@pytest.mark.parametrize("name", SETUPS)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_bytes_that_were_damaged_get_the_same_verdict(name: str, data: st.DataObject) -> None:
    """Damaged records are refused with the same message as in two steps, and nothing raises."""
    both = BOTH[name]
    value = both.value(likely(data.draw(RECORDS[name])))
    if value is None:
        return
    at = data.draw(st.integers(0, len(value)))
    junk = data.draw(st.binary(max_size=3))
    cut = data.draw(st.integers(0, 3))
    both.check(value, value[:at] + junk + value[at + cut :], value)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.get("name", case.get("case", "")))
def test_the_vectors_hold_on_the_fast_path(case: dict[str, Any]) -> None:
    """Each hand-written event that Avro can hold has the same result in one go and in two steps."""
    both = Both((SCHEMA, case.get("mapping"))) if case.get("mapping") else BOTH["default"]
    value = both.value(event_of(case.get("set", {})))
    if value is not None:
        both.check(value)


def test_most_vectors_are_on_the_fast_path() -> None:
    """The program itself reads more than nine of ten vectors, so that the tests above do not compare the two
    steps with themselves."""
    both = BOTH["default"]
    written = [value for case in CASES if (value := both.value(event_of(case.get("set", {})))) is not None]
    alone = [one for value in written if (one := both.alone(value)) is not None]
    assert len(written) > 150
    assert len(alone) > 0.9 * len(written)
    assert any(isinstance(one, Rejection) for one in alone)
    assert any(isinstance(one, Read) and one.warnings for one in alone)


def test_a_mark_is_one_bit_of_one_field() -> None:
    """Each field has a bit of its own among the marks; items' ids and content ids, as city and postal code, share one,
    since they count as one parameter. An advertising id has a second one: that it is an identity."""
    marks = dict(MARKS)
    assert marks["user_data.hashed_maids"].bit_count() == 2
    marks["user_data.hashed_maids"] &= COUNTED
    assert all(mark.bit_count() == 1 for mark in marks.values())
    assert marks["user_data.ct"] == marks["user_data.zp"]
    assert marks["custom_data.content_ids"] == marks[ITEM_ID]
    assert len({*marks.values()}) == len(marks) - 2


def test_the_module_is_compiled_where_a_compiler_is_installed() -> None:
    """Where a C compiler is installed, the compiled module is in the package."""
    if COMPILED is None and shutil.which("cc") is not None:
        pytest.fail(
            "consumer/conversion/native/_events.pyx was not compiled: run `make clean setup`, and read what it says"
        )


def test_headers_do_not_end_what_is_read_in_one_go() -> None:
    """The program reads on over records that carry a trace, and over those that name their schema in a header."""
    both, function = BOTH["default"], BOTH["default"].function
    good = both.value(event_of({}))
    assert good is not None
    if function is None:
        pytest.skip("the package was built without a C compiler")
    bounds, names = both.bounds(NOW), "__value_schema_id"
    traced = [Record(at, -1, None, good, (("traceparent", b"00-1"),) * (at % 2)) for at in range(4)]
    named = [Record(at, -1, None, good[5:], ((names, both.framing),)) for at in range(4)]
    others = [
        Record(5, -1, None, good, ((names, both.framing),)),
        Record(5, -1, None, good[5:], ((names, b"\0\0\0\0\x08"),)),
        Record(5, -1, None, None, ()),
    ]
    for records, start in ((traced, 5), (named, 0)):
        for other in others if start else [*others[1:], traced[0]]:
            columns = Columns(Keys())
            function([*records, other], columns, both.framing, start, *bounds)
            assert len(columns) == len(records)


def test_schemas_beyond_the_bound_take_two_steps() -> None:
    """Beyond the most schemas with a program, records are read in two steps."""
    both = Both(SETUPS["default"])
    both.alone(b"")  # skips the test without a compiler
    good = both.value(event_of({}))
    assert good is not None
    for number in range(100, 100 + MAX_PROGRAMS + 2):
        ref = SchemaRef("id", str(number))
        both.learn(ref, SCHEMA)
        (said,) = both.check(framing_of(ref) + good[5:])
        assert isinstance(said, list)
    assert sum(one.function is not None for one in both.compiled._written.values()) == MAX_PROGRAMS


@pytest.mark.parametrize("more", [0, 1])
def test_an_array_of_too_many_items(more: int) -> None:
    """An array of the most items is read in one go; with one item more the record is refused."""
    both = Both(SETUPS["default"])
    both.alone(b"")
    event = event_of({"order": {"items": [{"sku": "a"}] * (MAX_ITEMS + more)}})
    (said,) = both.check(both.value(event))
    assert both.compiled.in_two_steps == more
    assert isinstance(said, Rejection) == bool(more)
    assert not more or said.code == "too_large"


def test_records_that_take_two_steps_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that take two steps are counted, and so are all records of a schema for which no program can be made."""

    def fails(*_: Any) -> NoReturn:
        raise RuntimeError("not up to this schema")

    both = Both(SETUPS["default"])
    both.alone(b"")
    reading = both.compiled
    good = both.value(event_of({}))
    assert good is not None
    both.check(good, None, good)
    assert reading.in_two_steps == 0
    both.check(good, good + b"\0", good)
    assert reading.in_two_steps == 1
    reading._written.clear()
    monkeypatch.setattr("consumer.conversion.reading.write_program", fails)
    pipeline, now = Pipeline(Policy(), both.decoder, both.converter, reading=reading), Instant(0.0, NOW)
    pipeline.handle(Assigned([Assignment("t", 0, 1, 0, False)]), now)
    pipeline.handle(Fetched([Chunk("t", 0, 1, None, [Record(n, -1, None, good, ()) for n in range(3)])]), now)
    assert pipeline.statistics(now).counters.in_two_steps == 4


@pytest.mark.parametrize(("more", "in_one_go"), [(60, True), (1000, True), (1100, False)])
def test_a_record_too_wide_to_spread_takes_two_steps(more: int, in_one_go: bool) -> None:
    """A record with more fields than a program takes is read in two steps."""
    names = [f"f{n}" for n in range(more)]
    wide = {**SCHEMA, "fields": [*SCHEMA["fields"], *(
        avro.field(name, ["null", "int"], default=None) for name in names)]}  # fmt: skip
    both = Both((wide, None))
    value = both.value({**event_of({}), **dict.fromkeys(names, 7)})
    assert value is not None
    (said,) = both.check(value)
    assert isinstance(said, list)
    assert (both.function is not None) is (in_one_go and COMPILED is not None)
    assert both.function is None or both.alone(value) is not None


def test_times_of_any_sign_and_size_are_written_alike() -> None:
    """Seconds before 1970, and numbers of one digit to many, are written as orjson writes them."""
    both = Both((SCHEMA, None), max_event_age=1e15, max_clock_skew=1e15)
    times = [sign * 10**digits + more for sign in (-1, 1) for digits in range(15) for more in (-1, 0, 1)]
    for value in [both.value(event_of({"occurred_at": time})) for time in times]:
        assert value is not None
        both.check(value)
        assert both.alone(value) is not None


@pytest.mark.parametrize(("tag", "earlier"), [(REAL_API, "PO4_-b8T"), ("PO4_-b8T", REAL_API)])
def test_both_ways_make_the_same_keys_under_an_earlier_tag(tag: str, earlier: str) -> None:
    """With an earlier tag of the destination each event has a second key, as if it were delivered under that tag; other
    records have none. Both ways make the same."""
    both = BOTH["default"]
    ids = [*(f"e-{number}" for number in range(9)), "long " * 40, "ü"]
    events = [likely(event_of({})) | {"event_id": one} for one in ids]
    values = [*map(both.value, events), None, b"no record"]
    records = [Record(at, -1, None, value, ()) for at, value in enumerate(values)]
    made = [Columns(Keys(tag, earlier)) for _ in range(2)]
    both.two_steps.read(records, NOW, made[0], "")
    both.compiled.read(records, NOW, made[1], "")
    wanted = b"".join(Keys(earlier).of("11", "checkout", one) for one in ids) + bytes(2 * KEY_BYTES)
    assert [bytes(one.earlier_keys) for one in made] == [wanted] * 2
    assert bytes(made[1].keys) == b"".join(Keys(tag).of("11", "checkout", one) for one in ids) + bytes(
        2 * KEY_BYTES
    )


_OLD: Final = {"web": ("WEB", 3_601), "app": ("IOS", 7_201), "offline": ("OFFLINE", 90_001)}


@pytest.mark.parametrize("late", ["send", "filter", "dead_letter"])
@pytest.mark.parametrize("source", _OLD)
def test_late_events_become_what_the_mapping_says(source: str, late: str) -> None:
    """Sent, filtered or refused, by the action source; one second younger, they are sent. Where [max_age] does not name
    the source, all are."""
    ages = '[max_age]\nweb = "1h"\napp = "120m"\noffline = "25h"\n'
    both, other = Both((SCHEMA, f'{ages}late = "{late}"')), Both((SCHEMA, '[max_age]\nlate = "filter"'))
    channel, age = _OLD[source]
    for seconds, is_late in ((age, True), (age - 1, False)):
        happened = event_of({"channel": channel, "occurred_at": int((NOW - seconds) * 1000)})
        values = [one.value(happened) for one in (both, other)]
        [said], [without] = both.check(values[0]), other.check(values[1])
        assert isinstance(without, list)
        if late == "send" or not is_late:
            assert said == without
        else:
            assert isinstance(said, Untimely)
            assert said.verdict == (BY_AGE if late == "filter" else REFUSALS["late"])
