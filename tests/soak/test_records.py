"""The soak's records: they can be decoded, each event is new, the tally is right, and the producer is never too
far ahead."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from benchmarks.soak.records import HEAVY_EVERY, MARK, PARTITIONS, SCHEMA, Records
from consumer.avro.decode import Decoder, OneSchema
from consumer.engine.model import Disposition, Record

SPELL = 10_000
COUNT = HEAVY_EVERY * SPELL + SPELL // 2


@pytest.fixture(scope="module")
def records() -> Records:
    """Fifty-five thousand records with a heavy spell among them."""
    return Records(COUNT, seed=1, spell=SPELL)


@pytest.fixture(scope="module")
def produced(records: Records) -> list[tuple[int, bytes]]:
    """The same records, produced."""
    return [(one.partition, one.value) for one in records]


def test_all_that_is_deliverable_is_there_once(records: Records, produced: list[tuple[int, bytes]]) -> None:
    """There are as many different events as the tally says, each with its own serial number; no mark is left."""
    originals = len(produced) - records.tally[Disposition.DUPLICATE]
    deliverable = {value for _, value in produced if b"soak-" in value}
    assert sum(records.tally.values()) == COUNT
    assert sum(records.deliverable) == records.tally[Disposition.DELIVERED] > 0.8 * COUNT
    assert 0.03 * COUNT < records.tally[Disposition.DUPLICATE] < 0.07 * COUNT
    assert records.tally[Disposition.DELIVERED] <= len(deliverable) <= originals
    assert not any(MARK.encode() in value for _, value in produced)


def test_duplicates_lie_on_the_partition_of_their_original(produced: list[tuple[int, bytes]]) -> None:
    """Otherwise the broker would decide how long after its original a duplicate comes."""
    partitions: dict[bytes, set[int]] = {}
    for partition, value in produced:
        if b"soak-" in value:
            partitions.setdefault(value, set()).add(partition)
    assert {len(found) for found in partitions.values()} == {1}
    assert {partition for partition, _ in produced} == set(range(PARTITIONS))


def test_templates_stay_decodable(produced: list[tuple[int, bytes]]) -> None:
    """With a serial number in place of the mark the encoding is valid, and no shopper comes twice."""
    decoder = Decoder(OneSchema(json.loads(SCHEMA.read_text())))
    values = list({value for _, value in produced[:3_000] if b"soak-" in value})
    events = [decoder.decode(Record(at, -1, None, value, ())) for at, value in enumerate(values)]
    assert all(isinstance(event, dict) for event in events)
    emails = Counter(
        email for event in events if isinstance(event, dict) for email in event["customer"]["emails"]
    )
    assert len(emails) > 1_000
    assert set(emails.values()) == {1}


def test_a_heavy_spell_is_heavy(produced: list[tuple[int, bytes]]) -> None:
    """Its records are several times as large, and one of them larger than a hundred of the others."""
    sizes = [len(value) for _, value in produced]
    canonical = sizes[: (HEAVY_EVERY - 1) * SPELL]
    heavy = sizes[(HEAVY_EVERY - 1) * SPELL : HEAVY_EVERY * SPELL]
    assert sum(heavy) > 3 * sum(canonical) / (HEAVY_EVERY - 1)
    assert max(heavy) > 100 * sum(canonical) / len(canonical) > max(canonical) / 10


def test_the_same_seed_gives_the_same_tally(records: Records) -> None:
    """Count and seed alone decide what must be delivered."""
    again = Records(COUNT, seed=1, spell=SPELL)
    for _ in again:
        pass
    assert again.tally == records.tally
    with pytest.raises(ValueError, match="numbered"):
        Records(10**8, seed=1, spell=SPELL)
