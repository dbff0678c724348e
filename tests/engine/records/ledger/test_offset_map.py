"""The offset map: what is written is read again or not at all, and it never takes more room than there is."""

from __future__ import annotations

import base64
import string
import zlib
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumer.engine.model import METADATA_BYTES, Position, TopicPartition
from consumer.engine.records import offset_map
from consumer.engine.records.offset_map import (
    MAX_IDS,
    NOTHING_SAID,
    CommitMetadata,
    OffsetMap,
    are_different_topics,
    is_void,
    safe_window,
)
from tests.engine.building import PROPERTY

TP = TopicPartition("t", 0)
PREFIX = "pinstream:2:"
PREFIX_WITHOUT_IDS = "pinstream:1:"
TOPIC_ID = "x5vNb0eWTeyZpT1Aw2Z5Cg"
DESTINATION = "PO4_-b8T"
FINGERPRINT = "mappscheFunc"
RUNS, RUNS_DEFLATED, BITS, BITS_DEFLATED = range(4)
ALPHABET = string.ascii_letters + string.digits + "-_"
FEW = settings(PROPERTY, max_examples=60)
"""Settings for examples that take long."""

BASES = st.one_of(st.integers(0, 300), st.integers(0, 2**62), st.just(2**62))
LEADER_EPOCHS = st.one_of(st.none(), st.integers(0, 5), st.just(2**31 - 1))
LENGTHS = st.one_of(st.integers(1, 3), st.integers(1, 300), st.integers(1, 2**40))


@st.composite
def runs(draw: st.DrawFn, limit: int = 60) -> list[int]:
    """Draw lengths of runs, open and settled by turns; only the first may be 0: then the base itself is settled."""
    lengths = draw(st.lists(st.tuples(LENGTHS, LENGTHS), min_size=1, max_size=limit))
    flat = [length for pair in lengths for length in pair]
    return [0, *flat[1:]] if draw(st.booleans()) else flat


def bounds_of(base: int, lengths: Sequence[int]) -> list[int]:
    """Return the offsets where those runs end."""
    bounds = []
    for length in lengths:
        base += length
        bounds.append(base)
    return bounds


def random_bounds(seed: int, base: int, window: int, share: float = 0.5) -> list[int]:
    """Return bounds of a window in which offsets are settled at random, the last one always."""
    random = Random(seed)
    marks = [False, *(random.random() < share for _ in range(window - 2)), True]
    return [base + at for at in range(window) if marks[at] != marks[at - 1 if at else at]] + [base + window]


def write(
    base: int, bounds: Sequence[int], leader_epoch: int | None, limit: int = METADATA_BYTES, **ids: str | None
) -> str:
    """Return the metadata of a commit of `base`."""
    return offset_map.write_map(TP, base, bounds, leader_epoch, limit, **ids)


def at(base: int, text: str) -> Position:
    """Return a commit of `base` with this metadata."""
    return Position(*TP, base, None, text)


def read_metadata(text: str, base: int) -> CommitMetadata:
    """Return what is read of a commit of `base`."""
    return offset_map.read_map(at(base, text))


def read(text: str, base: int) -> OffsetMap | None:
    """Return the map of a commit of `base`."""
    return read_metadata(text, base).settled


def as_read(text: str, base: int) -> tuple[list[int], int | None] | None:
    """Return what `read` returns, as plain values."""
    found = read(text, base)
    return None if found is None else (list(found.bounds), found.leader_epoch)


def forged(base: int, how: int, body: bytes, prefix: str = PREFIX) -> str:
    """Return a text with the right checksum and any content."""
    checksum = zlib.crc32(base.to_bytes(8, "big") + b"t-0" + bytes([how]) + body).to_bytes(4, "big")
    return prefix + base64.urlsafe_b64encode(bytes([how]) + checksum + body).decode()


# -- writing and reading again


@PROPERTY
@given(BASES, runs(), LEADER_EPOCHS)
@example(0, [0, 1], None)
@example(2**62, [2**40, 2**40], 2**31 - 1)
def test_what_is_written_is_read(base: int, lengths: list[int], leader_epoch: int | None) -> None:
    """Any runs, gaps, bases and leader epochs are read as they were written, as ASCII that a broker accepts."""
    bounds = bounds_of(base, lengths)
    text = write(base, bounds, leader_epoch)
    assert text.isascii()
    assert len(text) <= METADATA_BYTES
    assert as_read(text, base) == (bounds, leader_epoch)


@pytest.mark.parametrize("window", [2, 7, 8, 9, 63, 64, 65, 4_000, 20_000])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_windows_of_all_densities_come_back(window: int, share: float) -> None:
    """Windows with few, half or nearly all offsets settled are read as written, in whichever form is shortest."""
    bounds = random_bounds(window, 1_000_003, window, share)
    assert as_read(write(1_000_003, bounds, 9), 1_000_003) == (bounds, 9)


def test_long_runs_are_cheap() -> None:
    """A million settled offsets behind an open one take fewer than 40 characters, not a bit each."""
    assert len(write(10, [11, 1_000_011], 3)) < 40


def test_a_regular_pattern_is_deflated() -> None:
    """Every second offset of a long window is deflated, and fits where one bit each would not."""
    bounds = list(range(1, 1 + 4 * safe_window(METADATA_BYTES)))
    assert as_read(write(0, bounds, None), 0) == (bounds, None)


# -- topic id and destination in a commit


@PROPERTY
@given(
    BASES,
    runs(),
    LEADER_EPOCHS,
    st.tuples(*(st.sampled_from([None, one]) for one in (TOPIC_ID, DESTINATION, FINGERPRINT))),
)
@example(0, [], None, (TOPIC_ID, DESTINATION, FINGERPRINT))
@example(2**62, [], 7, (None, DESTINATION, None))
def test_the_ids_come_back_with_and_without_a_map(
    base: int, lengths: list[int], leader_epoch: int | None, ids: tuple[str | None, str | None, str | None]
) -> None:
    """Topic id, destination and fingerprint are read as written, also without a settled offset above the base."""
    bounds = bounds_of(base, lengths)
    topic_id, destination, sender = ids
    text = write(base, bounds, leader_epoch, topic_id=topic_id, destination=destination, fingerprint=sender)
    found = read_metadata(text, base)
    if not (bounds or any(ids)):
        assert (text, found) == ("", NOTHING_SAID)
        return
    assert found[:3] == ids
    assert (found.settled is None) == (not bounds)
    assert found.settled is None or list(found.settled.bounds) == bounds


@PROPERTY
@given(BASES, runs(), LEADER_EPOCHS, st.integers(0, 400))
def test_runs_that_do_not_fit_beside_the_ids_are_omitted(
    base: int, lengths: list[int], leader_epoch: int | None, limit: int
) -> None:
    """Runs that do not fit beside the ids are omitted; without room for the ids nothing is written."""
    bounds = bounds_of(base, lengths)
    ids = {"topic_id": TOPIC_ID, "destination": DESTINATION, "fingerprint": FINGERPRINT}
    text = write(base, bounds, leader_epoch, limit, **ids)
    assert len(text) <= limit
    if limit < MAX_IDS:
        assert text == ""
        return
    found = read_metadata(text, base)
    assert found[:3] == (TOPIC_ID, DESTINATION, FINGERPRINT)
    if limit == MAX_IDS:
        assert found.settled is None


@PROPERTY
@given(st.integers(0, 127), runs(), LEADER_EPOCHS)
def test_a_version_that_knows_no_fingerprint_reads_the_map(
    base: int, lengths: list[int], leader_epoch: int | None
) -> None:
    """Behind deflated runs an earlier version does not look: with a fingerprint there it reads the same map."""
    bounds = bounds_of(base, lengths)
    ids = {"topic_id": TOPIC_ID, "destination": DESTINATION}
    text = write(base, bounds, leader_epoch, METADATA_BYTES, **ids, fingerprint=FINGERPRINT)
    raw = base64.urlsafe_b64decode(text.removeprefix(PREFIX))
    how, head, behind = raw[0], raw[1:-9], raw[-9:]
    assert how in (0xC0 | RUNS_DEFLATED, 0xC0 | BITS_DEFLATED)
    assert base64.urlsafe_b64encode(behind).decode() == FINGERPRINT
    # The same without what an earlier version does not look at.
    assert as_read(forged(base, how, head[4:]), base) == (bounds, leader_epoch)
    assert read_metadata(forged(base, how, head[4:]), base)[:3] == (*ids.values(), None)


def test_what_was_written_before_there_were_ids_is_read() -> None:
    """A commit of an older version without ids is read: its map counts, and topic id and destination are not known."""
    text = forged(5, RUNS, b"\x04\1\2", PREFIX_WITHOUT_IDS)
    found = read_metadata(text, 5)
    assert found[:2] == (None, None)
    assert as_read(text, 5) == ([6, 8], 3)
    assert not is_void(at(5, text), TOPIC_ID)


def test_an_offset_of_an_earlier_life_is_void() -> None:
    """An offset with another topic id than the topic has now is void; an unknown id makes nothing void."""
    text = write(5, [6, 8], 3, topic_id=TOPIC_ID)
    another = TOPIC_ID[::-1][:21] + "A"
    assert is_void(at(5, text), another)
    assert not is_void(at(5, text), TOPIC_ID)
    assert not is_void(at(5, text), None)
    assert not is_void(at(6, text), another)
    assert not is_void(at(5, text)._replace(partition=1), another)
    assert not is_void(at(5, write(5, [], 3, destination=DESTINATION)), another)
    assert not is_void(at(5, "by hand"), another)
    assert not are_different_topics(None, None)


@pytest.mark.parametrize("body", [b"", b"\1" * 15, b"\1" * 16])
def test_an_id_that_ends_in_its_middle_is_no_metadata(body: bytes) -> None:
    """An id that ends too early is no metadata, even with the right checksum."""
    assert read_metadata(forged(5, 0xC0, body), 5) is NOTHING_SAID


def test_ids_with_a_map_that_cannot_be_read_still_count() -> None:
    """When the runs have an unknown form, as of a later version, the ids are read and the map is None."""
    found = read_metadata(forged(5, 0x80 | 9, b"\1" * 16 + b"\0\1\1"), 5)
    assert found.topic_id == "AQEBAQEBAQEBAQEBAQEBAQ"
    assert found.settled is None


# -- room


@PROPERTY
@given(BASES, runs(), LEADER_EPOCHS, st.integers(MAX_IDS + 1, 400))
def test_what_does_not_fit_is_cut_from_the_top(
    base: int, lengths: list[int], leader_epoch: int | None, limit: int
) -> None:
    """A text has at most `limit` bytes: a prefix of the runs, and one more pair would not have fitted."""
    bounds = bounds_of(base, lengths)
    text = write(base, bounds, leader_epoch, limit)
    assert len(text) <= limit
    kept: Sequence[int] = []
    if text:
        found = read(text, base)
        assert found is not None
        assert found.leader_epoch == leader_epoch
        kept = list(found.bounds)
    assert len(kept) % 2 == 0
    assert kept == bounds[: len(kept)]
    if len(kept) < len(bounds):
        assert len(write(base, bounds[: len(kept) + 2], leader_epoch)) > limit


@FEW
@given(st.integers(0, 2**32), st.integers(2, 5_000), st.sampled_from([3, 40, 5_000]), BASES)
def test_a_map_never_exceeds_the_broker_s_limit(seed: int, count: int, longest: int, base: int) -> None:
    """Thousands of runs take at most 4,096 bytes: a prefix of the runs that fills the text if it was cut."""
    random = Random(seed)
    bounds = bounds_of(base, [random.randint(1, longest) for _ in range(2 * count)])
    text = write(base, bounds, 2**31 - 1)
    assert 0 < len(text.encode()) <= METADATA_BYTES
    found = read(text, base)
    assert found is not None
    assert list(found.bounds) == bounds[: len(found.bounds)]
    # One more pair of runs takes four bytes at most, and deflating evens out no more than that.
    assert len(found.bounds) == len(bounds) or len(text) > METADATA_BYTES - 32


@FEW
@given(st.integers(0, 2**32), st.integers(1, 99), BASES, LEADER_EPOCHS)
def test_a_safe_window_fits_whatever_its_pattern(
    seed: int, percent: int, base: int, leader_epoch: int | None
) -> None:
    """Up to `safe_window` offsets nothing is cut: half of them settled at random, few, or nearly all."""
    bounds = random_bounds(seed, base, safe_window(METADATA_BYTES), percent / 100)
    ids = {"topic_id": TOPIC_ID, "destination": DESTINATION, "fingerprint": FINGERPRINT}
    assert as_read(write(base, bounds, leader_epoch, METADATA_BYTES, **ids), base) == (bounds, leader_epoch)


@pytest.mark.parametrize("count", [500_000, 600_000, 2_000_000])
def test_whatever_is_written_can_be_read(count: int) -> None:
    """A map of millions of runs is never larger than the reader inflates."""
    bounds = range(1, 1 + 2 * count)
    text = write(0, bounds, None)
    found = read(text, 0)
    assert found is not None
    assert list(found.bounds) == list(bounds[: len(found.bounds)])


# -- foreign and broken texts


def check(found: OffsetMap | None, base: int) -> None:
    """Check that a map is None or has rising bounds in pairs."""
    if found is None:
        return
    bounds = list(found.bounds)
    assert bounds
    assert len(bounds) % 2 == 0
    assert bounds[0] >= base
    assert all(before < after for before, after in pairwise(bounds))
    assert found.leader_epoch is None or found.leader_epoch >= 0


@PROPERTY
@given(
    st.one_of(st.text(max_size=200), st.text(max_size=60).map(lambda text: PREFIX + text)),
    BASES,
)
@example("", 0)
@example(PREFIX, 0)
@example(PREFIX + "=", 0)
@example(PREFIX + "AAAAAAAA\x00", 0)
@example(PREFIX + "\ud800", 0)
@example(PREFIX + "ä" * 40, 0)
def test_foreign_text_is_no_map_and_raises_nothing(text: str, base: int) -> None:
    """A text of another client is no map and raises no error."""
    assert read(text, base) is None


@PROPERTY
@given(BASES, st.integers(0, 255), st.binary(max_size=60))
@example(0, RUNS, b"")
@example(0, RUNS, b"\0")
@example(0, RUNS, b"\0\0\0")
@example(0, RUNS, b"\0\5")
@example(0, RUNS, b"\0\1\1\1")
@example(0, RUNS, b"\0\1\0\1\1")
@example(0, BITS, b"\0")
@example(0, BITS, b"\0\0\0")
@example(5, RUNS, b"\xff" * 20)
@example(5, RUNS, b"\0\1" + b"\xff" * 8 + b"\x7f")
@example(5, RUNS, b"\0\1" + b"\x80" * 12 + b"\1")
@example(5, RUNS_DEFLATED, b"\0" + zlib.compress(b""))
@example(5, RUNS_DEFLATED, b"\0" + zlib.compress(b"\1\1")[:-1])
@example(5, BITS_DEFLATED, b"\0" + zlib.compress(b"\0"))
@example(5, 4, b"\0\1\1")
def test_any_content_with_the_right_checksum_raises_nothing(base: int, how: int, body: bytes) -> None:
    """Any content with the right checksum gives rising bounds in pairs, or None."""
    check(read(forged(base, how, body), base), base)


@pytest.mark.parametrize(
    ("how", "body"),
    [
        pytest.param(RUNS, b"", id="not even a leader epoch"),
        pytest.param(RUNS, b"\0", id="no bounds"),
        pytest.param(RUNS, b"\0\5", id="a settled run without an end"),
        pytest.param(RUNS, b"\0\1\0", id="a run of nothing"),
        pytest.param(RUNS, b"\0\0\0", id="nothing but nothing"),
        pytest.param(RUNS, b"\0\1\x80", id="a number that ends in its middle"),
        pytest.param(RUNS, b"\0\1" + b"\xff" * 2000, id="a number without end"),
        pytest.param(RUNS, b"\xff" * 9, id="a leader epoch without end"),
        pytest.param(BITS, b"\0\0", id="no bit"),
        pytest.param(BITS_DEFLATED, b"\0\1\2\3", id="not deflated"),
        pytest.param(RUNS_DEFLATED, b"\0" + zlib.compress(bytes(1 << 21)), id="two million bytes of nothing"),
        pytest.param(BITS_DEFLATED, b"\0" + zlib.compress(b"\xff" * (2 << 20)), id="two million bytes"),
        pytest.param(9, b"\0\1\1", id="a later version's form"),
    ],
)
def test_what_is_no_map_is_none(how: int, body: bytes) -> None:
    """Empty or odd bounds, endless numbers, bombs and unknown forms are no map, even with the right checksum."""
    assert read(forged(77, how, body), 77) is None


def test_a_bomb_gives_no_more_bounds_than_the_limit() -> None:
    """4,096 characters that inflate to very much never give more bounds than a million offsets have."""
    found = read(forged(0, BITS_DEFLATED, b"\0" + zlib.compress(b"\xaa" * ((1 << 20) - 1), 9)), 0)
    assert found is None or len(found.bounds) <= 1 << 20


def test_a_text_above_the_broker_s_limit_is_not_read() -> None:
    """The longest text that a broker accepts is read as a map; a longer one is not."""
    quads = (METADATA_BYTES - len(PREFIX)) // 4
    runs = 3 * quads - 6 - (3 * quads - 6) % 2  # runs of one byte each, after six other bytes
    full, longer = (forged(0, RUNS, b"\0" + b"\1" * count) for count in (runs, runs + 2))
    assert METADATA_BYTES - 4 < len(full) <= METADATA_BYTES < len(longer)
    assert as_read(full, 0) == (list(range(1, runs + 1)), None)
    assert read(longer, 0) is None
    assert read(full + "A", 0) is None


def test_another_prefix_is_not_ours() -> None:
    """A text of a later version or another program, or with extra or missing characters, is not read."""
    text = write(3, [4, 9], 1)
    for other in (text.replace(":2:", ":3:"), text.upper(), " " + text, text + "\n", text + "=", text[:-1]):
        assert read(other, 3) is None


@PROPERTY
@given(BASES, BASES, runs(8), LEADER_EPOCHS)
@example(1, 0, [1, 1], None)
@example(2**62, 2**62 - 1, [1, 1], 0)
def test_a_map_holds_for_its_own_offset_only(
    base: int, other: int, lengths: list[int], leader_epoch: int | None
) -> None:
    """A map is read for its own offset alone: the checksum includes the offset."""
    text = write(base, bounds_of(base, lengths), leader_epoch)
    assert (read(text, other) is None) == (base != other)


@PROPERTY
@given(BASES, runs(8), LEADER_EPOCHS, st.data())
def test_a_wrong_character_never_makes_another_map(
    base: int, lengths: list[int], leader_epoch: int | None, data: st.DataObject
) -> None:
    """A text with one character changed, omitted or added is no map, or (in unused bits) the same map."""
    bounds = bounds_of(base, lengths)
    text = write(base, bounds, leader_epoch)
    place = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.one_of(st.sampled_from(ALPHABET + "=+/ \n"), st.characters()))
    for broken in (
        text[:place] + character + text[place + 1 :],
        text[:place] + text[place + 1 :],
        text[:place] + character + text[place:],
    ):
        assert as_read(broken, base) in (None, (bounds, leader_epoch))


# -- questions to a map


@PROPERTY
@given(st.sets(st.integers(0, 40), min_size=1), st.integers(0, 2**62), st.integers(0, 45))
def test_a_map_agrees_with_a_set_of_offsets(settled: set[int], base: int, start: int) -> None:
    """`settled` and `from_offset` agree with a plain set of offsets."""
    bounds = [
        base + at for at in range(43) if (at in settled) != (at - 1 in settled)
    ]  # where a run begins or ends
    found = read(write(base, bounds, 4), base)
    assert found is not None
    assert found.end == base + max(settled) + 1
    assert {at for at in range(-2, 60) if found.settled(base + at)} == settled
    rest = found.from_offset(base + start)
    expected = {at for at in settled if at >= start}
    assert {at for begin, end in zip(rest[::2], rest[1::2], strict=True) for at in range(begin, end)} == {
        base + at for at in expected
    }
    assert all(before < after for before, after in pairwise(rest))


@pytest.mark.parametrize(
    ("written", "record", "holds"),
    [
        (5, 5, True), (5, 4, True), (5, 6, False), (0, 0, True), (0, 1, False),
        (None, None, True), (None, 0, False), (5, None, False), (0, None, False),
    ],
)  # fmt: skip
def test_a_map_does_not_hold_for_a_higher_leader_epoch(
    written: int | None, record: int | None, holds: bool
) -> None:
    """A record of a higher leader epoch than any in the map was written after a cut, so the map does not hold
    for it; an unknown epoch matches only an unknown one."""
    assert OffsetMap([1, 2], written).holds_for(record) is holds
