"""Dead letters and marks on their topic: what is written is read again, and nothing hostile is accepted as one."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka import letters
from consumer.adapters.kafka.letters import (
    DONE,
    Done,
    Home,
    Place,
    forms,
    is_original,
    letter_headers,
    mark_headers,
    next_trip,
    own_headers,
    read_done,
    read_letter,
    read_mark,
    restored,
)
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Record, Rejection, Stage
from tests.engine.building import PROPERTY

TOPIC = "orders.dead-letters"
HOME = Home("here", TOPIC, 0)
OFFSETS = st.integers(0, 2**63 - 1)
SMALL = st.integers(0, 60)
NAMES = st.text("abcXYZ019._-", min_size=1, max_size=20)
BYTES = st.none() | st.binary(max_size=12)
FOREIGN = st.tuples(st.text(st.characters(codec="utf-8"), max_size=8), BYTES)
OURS = st.tuples(
    st.sampled_from(
        [
            *letters.LETTER_HEADERS,
            letters.TRIPS,
            letters.REDRIVEN,
            letters.DONE,
            letters.MARKED_AT,
            "pinstream.value",
        ]
    ),
    BYTES
    | st.sampled_from(
        [b"convert", b"1", b"-1", b"orders", b"2023-11-14T22:13:20.007Z", b"17-30", str(HOME).encode()]
    ),
)
DEAD = st.builds(
    DeadLetter,
    topic=NAMES,
    partition=st.integers(0, 2**31 - 1),
    record=st.builds(
        Record,
        offset=OFFSETS,
        timestamp=st.integers(-1, 2**45),
        key=BYTES,
        value=BYTES,
        headers=st.lists(FOREIGN | OURS, max_size=5).map(tuple),
    ),
    rejection=st.builds(
        Rejection, stage=st.sampled_from(Stage), code=NAMES, message=st.text(st.characters(codec="utf-8"))
    ),
    attempts=st.integers(0, 10**6),
    at_ms=st.integers(0, 2**42),
)


def dead(**parts: Any) -> DeadLetter:
    """Return a letter of ``orders:2:41``; `parts` are fields of its record."""
    record = {
        "offset": 41,
        "timestamp": 1_600_000_000_123,
        "key": b"k",
        "value": b"v",
        "headers": (),
        **parts,
    }
    rejection = Rejection(Stage.CONVERT, "unknown_currency", "no such currency – ärgerlich")
    return DeadLetter("orders", 2, Record(**record), rejection, 3, 1_700_000_000_007)


def lying(letter: DeadLetter, offset: int = 7, omitted: tuple[str, ...] = ()) -> Record:
    """Return the record of a letter on its dead-letter topic."""
    return Record(
        offset,
        1_700_000_000_100,
        None if "key" in omitted else letter.record.key,
        None if "value" in omitted else letter.record.value,
        letter_headers(letter, omitted),
    )


def read(letter: DeadLetter, offset: int = 7, omitted: tuple[str, ...] = ()) -> letters.DeadRecord:
    """Return the letter as it is read after being written."""
    found = read_letter(TOPIC, 2, lying(letter, offset, omitted))
    assert found is not None
    return found


def test_a_letter_says_what_was_written() -> None:
    """The nine headers as docs/dead-letters.md has them: numbers in decimal, `at` in ISO 8601; and they are read."""
    assert dict(letter_headers(dead())) == {
        "pinstream.stage": b"convert",
        "pinstream.code": b"unknown_currency",
        "pinstream.message": "no such currency – ärgerlich".encode(),
        "pinstream.topic": b"orders",
        "pinstream.partition": b"2",
        "pinstream.offset": b"41",
        "pinstream.timestamp": b"1600000000123",
        "pinstream.attempts": b"3",
        "pinstream.at": b"2023-11-14T22:13:20.007Z",
    }
    found = read(dead())
    assert found == letters.DeadRecord(
        place=Place(TOPIC, 2, 7),
        origin=Place("orders", 2, 41),
        stage=Stage.CONVERT,
        code="unknown_currency",
        reason="no such currency – ärgerlich",
        timestamp=1_600_000_000_123,
        attempts=3,
        at_ms=1_700_000_000_007,
        trips=0,
        omitted={},
        record=lying(dead()),
    )
    assert str(found.place) == "orders.dead-letters:2:7"


@PROPERTY
@given(DEAD, st.sampled_from([(), ("value",), ("value", "headers"), ("value", "headers", "key")]))
def test_every_letter_is_read_again(letter: DeadLetter, omitted: tuple[str, ...]) -> None:
    """With its origin, rejection and parts, whatever headers its record has."""
    found = read(letter, omitted=omitted)
    assert found.origin == Place(letter.topic, letter.partition, letter.record.offset)
    assert (found.stage, found.code, found.reason) == letter.rejection
    assert (found.attempts, found.at_ms, found.timestamp) == (
        letter.attempts,
        letter.at_ms,
        letter.record.timestamp,
    )
    assert set(found.omitted) == set(omitted)
    ours = [name for name, _ in found.record.headers if name in letters.LETTER_HEADERS]
    assert ours == [*letters.LETTER_HEADERS], "those of an earlier death give way"
    assert is_original(found, letter.record)
    assert read_mark(found.record, HOME) is None
    if not omitted:
        back = restored(found)
        assert back == letter.record._replace(offset=7, headers=own_headers(letter.record.headers))


@PROPERTY
@given(st.lists(FOREIGN | OURS, max_size=14), OFFSETS)
def test_hostile_headers_make_no_letter_and_no_mark(
    headers: list[tuple[str, bytes | None]], offset: int
) -> None:
    """With any headers a record is a letter, a mark or neither, and never both or an error."""
    record = Record(offset, -1, None, None, tuple(headers))
    letter, mark = read_letter(TOPIC, 0, record), read_mark(record, HOME)
    assert letter is None or mark is None
    if letter is not None:
        assert len(letter.message) <= 300
        assert letter.message.isprintable()


@pytest.mark.parametrize("name", letters.LETTER_HEADERS)
@pytest.mark.parametrize("value", [None, b"", b"\xff", b"no such thing\x1b[31m"])
def test_a_letter_has_all_nine_headers(name: str, value: bytes | None) -> None:
    """Without one, or with an impossible value, it is none; a message may be any text."""
    whole = lying(dead())
    without = tuple(header for header in whole.headers if header[0] != name)
    assert read_letter(TOPIC, 2, whole._replace(headers=without)) is None
    spoiled = read_letter(TOPIC, 2, whole._replace(headers=(*without, (name, value))))
    if name == letters.MESSAGE and value in (b"", b"no such thing\x1b[31m"):
        assert spoiled is not None
        assert spoiled.message.isprintable()
    else:
        assert spoiled is None


def test_what_a_producer_wrote_is_not_believed() -> None:
    """Nothing personal is shown; of headers of one name the last counts, which is ours; a forged mark is none."""
    said = Rejection(Stage.DELIVER, "refused", "no jane@example.org\n\x1b[2Jhere")
    assert read(dead()._replace(rejection=said)).message == "no *** [2Jhere"
    record = lying(dead(headers=((letters.DONE, b"0-6"),)))
    found = read_letter(TOPIC, 2, record._replace(headers=((letters.CODE, b"forged"), *record.headers)))
    assert found is not None
    assert found.code == "unknown_currency"
    assert read_mark(record, HOME) is None


# ---------------------------------------------------------------------------------------------------- forms


@PROPERTY
@given(DEAD, st.integers(1, 9))
def test_each_form_of_a_letter_is_smaller_and_still_a_letter(letter: DeadLetter, partitions: int) -> None:
    """Whole, then without value, own headers and key in turn."""
    record = letter.record
    there = [
        part
        for part, held in (("value", record.value), ("headers", record.headers), ("key", record.key))
        if held
    ]
    found = list(forms(letter, TOPIC, partitions))
    # Headers with no name and no value have no bytes: leaving them out makes nothing smaller.
    assert [one.omitted for one in found] in (
        [tuple(there[:count]) for count in range(len(there) + 1)],
        [tuple(one for one in there if one != "headers")[:count] for count in range(len(there))],
    )
    for one in found:
        assert (one.topic, one.partition) == (TOPIC, letter.partition % partitions)
        assert one.key == (None if "key" in one.omitted else record.key)
        assert one.value == (None if "value" in one.omitted else record.value)
        lying_there = read_letter(TOPIC, one.partition, Record(7, -1, one.key, one.value, one.headers))
        assert lying_there is not None
        assert set(lying_there.omitted) == set(one.omitted)
        assert is_original(lying_there, record)


# ---------------------------------------------------------------------------------------------------- trips


def test_trips_are_counted_over_any_number_of_deaths() -> None:
    """And the record's own headers stay as they were."""
    own = (("a", b"1"), ("a", None))
    record = dead(headers=own).record
    for trip in range(1, 6):
        found = read(dead()._replace(record=record), offset=trip)
        assert found.trips == trip - 1
        back = restored(found)
        assert back.headers == own
        record = back._replace(headers=next_trip(back.headers, found))
        assert record.headers == (
            *own,
            ("pinstream.trips", str(trip).encode()),
            ("pinstream.redriven", f"orders.dead-letters:2:{trip}".encode()),
        )


def test_trips_are_counted_even_where_headers_are_omitted() -> None:
    """A letter that had its headers omitted keeps the count of its trips, so that it cannot circle indefinitely."""
    went = next_trip((("h", b"x" * 1000),), read(dead()))
    found = read(dead(headers=went), omitted=("value", "headers"))
    assert (found.trips, found.omitted) == (
        1,
        {"value": 1, "headers": len(b"x") * 1000 + 1 + 15 + 1 + 18 + 23},
    )
    assert restored(found).headers == ()


@pytest.mark.parametrize("text", [b"", b"-1", b"many", b"\xff", None, b"1" * 400, b"%d" % 2**63])
def test_trips_that_are_no_number_are_too_many(text: bytes | None) -> None:
    """Also after the letter is put back, so that it cannot begin to circle."""
    letter = read(dead(headers=(("pinstream.trips", text),)))
    assert letter.trips == 2**63 - 1
    assert read(dead(headers=next_trip((), letter))).trips == letter.trips


# ------------------------------------------------------------------------------------------------- originals


def test_another_record_at_the_origin_is_not_the_one_that_died() -> None:
    """As in a topic created again: by its timestamp, size, key or headers."""
    letter = dead(headers=(("h", b"1"),))
    found = read(letter, omitted=("value",))
    assert is_original(found, letter.record)
    for other in (
        letter.record._replace(timestamp=5),
        letter.record._replace(value=b"vv"),
        letter.record._replace(key=b"q"),
        letter.record._replace(headers=(("h", b"2"),)),
    ):
        assert not is_original(found, other)


# ---------------------------------------------------------------------------------------------------- marks

RUNS = st.lists(
    st.tuples(SMALL, st.integers(1, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=12
)


@PROPERTY
@given(RUNS)
def test_the_runs_of_a_mark_are_read_again(runs: list[tuple[int, int]]) -> None:
    """The runs of a mark are read again, from its text and from a record whose offset is above all of them."""
    assert read_done((dict(mark_headers(runs, HOME))[DONE] or b"").decode()) == (runs or None)
    record = Record(100, -1, b"key", b"value", mark_headers(runs, HOME))
    assert read_mark(record, HOME) == (runs or None)


def test_a_mark_counts_only_for_offsets_before_its_own() -> None:
    """Both ends of a run are inclusive; one that names later offsets is of another topic."""
    assert dict(mark_headers([(17, 31), (45, 46)], HOME))[DONE] == b"17-30,45"
    headers = mark_headers([(17, 31)], HOME)
    assert read_mark(Record(30, -1, b"k", b"v", headers), HOME) is None
    assert read_mark(Record(31, -1, b"k", b"v", headers), HOME) == [(17, 31)]


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "1-", "-1", "3-2", "1 2", "a", "1-2-3", "9" * 25, "١-٢", "1" * 3_000_000]
)
def test_a_text_that_is_no_mark_is_read_as_none(text: str) -> None:
    """A text that is no mark is read as None, without an error."""
    assert read_done(text) is None


@PROPERTY
@given(st.text(max_size=40))
def test_any_text_is_a_mark_or_not(text: str) -> None:
    """Any text is read without an exception, and runs that are returned are not empty."""
    assert all(begin < end for begin, end in read_done(text) or ())


HOMES = st.builds(
    Home, st.text(max_size=30), st.from_regex(r"[a-z._-]{1,9}", fullmatch=True), st.integers(0, 99), st.none()
)


@PROPERTY
@given(HOMES, HOMES)
def test_a_mark_counts_at_its_own_place_alone(home: Home, other: Home) -> None:
    """A mark counts only for its own cluster, topic and partition; elsewhere it is recognised and marks nothing."""
    record = Record(31, -1, b"k", b"v", mark_headers([(17, 31)], home))
    assert read_mark(record, home) == [(17, 31)]
    if other != home:
        assert read_mark(record, other) == []
    assert read_mark(record._replace(headers=record.headers[:1]), home) is None


def test_a_mark_from_before_its_topic_was_created_again_is_ignored() -> None:
    """Its offsets are of other letters. Without an id, on either side, it counts."""
    old, new = HOME._replace(topic_id="old"), HOME._replace(topic_id="new")
    believed, ignored = [(17, 31)], list[tuple[int, int]]()
    for written, read, expected in (
        (old, new, ignored),
        (old, old, believed),
        (HOME, new, believed),
        (old, HOME, believed),
    ):
        record = Record(31, -1, b"k", b"v", mark_headers([(17, 31)], written))
        assert read_mark(record, read) == expected


@pytest.mark.parametrize(
    ("written", "epochs", "done"),
    [
        (3, [(1, 0), (3, 20)], [(10, 20), (25, 26)]),
        (3, [(1, 0), (3, 12), (5, 15), (6, 40)], [(10, 15)]),
        (3, [(5, 4)], []),
        (None, [(1, 0), (5, 15)], [(10, 20), (25, 26)]),
    ],
)
def test_a_mark_counts_only_for_letters_of_its_own_log(
    written: int | None, epochs: list[tuple[int, int]], done: list[tuple[int, int]]
) -> None:
    """A letter with a later epoch than it had read lies behind a cut, and is not done."""
    record = Record(50, -1, b"k", b"v", mark_headers([(10, 20), (25, 26)], HOME, written))
    assert read_mark(record, HOME, epochs) == done


@PROPERTY
@given(st.lists(RUNS, max_size=8), RUNS)
def test_done_is_the_union_of_all_marks(
    marks: list[list[tuple[int, int]]], others: list[tuple[int, int]]
) -> None:
    """In any order, overlapping or not, in as few runs as possible; what two have in common is counted."""
    done, model = Done(), set[int]()
    for runs in marks:
        done.add(runs)
        model.update(offset for begin, end in runs for offset in range(begin, end))
        assert {offset for offset in range(80) if offset in done} == model
    runs = list(done.runs())
    assert len(runs) == len([offset for offset in model if offset - 1 not in model])
    assert all(one[1] < other[0] for one, other in itertools.pairwise(runs))
    second = Done()
    second.add(others)
    both = {offset for offset in range(80) if offset in done and offset in second}
    assert done.common(second) == second.common(done) == len(both)
