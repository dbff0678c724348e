"""The records of demo and produce: repeated and spoiled as asked, whatever their schema is."""

from __future__ import annotations

import json
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from consumer.adapters.files import Types
from consumer.avro.decode import OneSchema
from consumer.avro.encode import Encoder
from consumer.demo.generator import EventGenerator
from consumer.demo.records import FileRecords, Produced, disturbed, made_up
from consumer.errors import InputError

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "commerce_event.avsc").read_text())
OTHER = {"type": "record", "name": "Sale", "fields": [{"name": "sku", "type": "long"}]}
GIVEN = [Produced(b"k", b"\xc3\x01 record %d" % number) for number in range(2000)]


@pytest.mark.parametrize("schema", [SCHEMA, OTHER], ids=["the shop's", "another"])
def test_shares_of_repeated_and_invalid_records(schema: dict[str, object]) -> None:
    """All that was given is there, in order; the rest is byte for byte one of it, or cannot be delivered."""
    encode = Encoder(schema).encode
    found = list(disturbed(GIVEN, 0.1, 0.2, 1, encode))
    times = Counter(found)
    assert list(dict.fromkeys(one for one in found if one in set(GIVEN))) == GIVEN
    assert sum(times[one] - 1 for one in GIVEN) == pytest.approx(0.1 * len(found), rel=0.25)
    broken = [one for one in found if one not in set(GIVEN)]
    assert len(broken) == pytest.approx(0.2 * len(found), rel=0.25)
    assert any(one.value[:2] == b"\xc3\x01" for one in broken) is (schema is SCHEMA)


def test_the_same_seed_gives_the_same_records() -> None:
    """Also which are repeated, and where."""
    encode = Encoder(OTHER).encode
    runs = [list(disturbed(GIVEN, 0.3, 0.0, 7, encode)) for _ in range(2)]
    assert runs[0] == runs[1] != GIVEN


def test_a_shop_whose_events_do_not_fit_says_so() -> None:
    """One line that says what to do, not a bug to report."""
    encode = Encoder(OTHER).encode
    with pytest.raises(InputError, match=r"do not fit your schema .*; name a file of records, or unset"):
        list(islice(made_up(EventGenerator(1, time.time), encode), 10))


def test_a_file_may_give_key_and_headers(tmp_path: Path) -> None:
    """A key that is text or a number and the headers are written; a key in Avro is not, as it has no schema here."""
    lines = [
        {"sku": 1, "@key": "c-7", "@header.ce_type": "paid"},
        {"sku": 2, "@key": 7},
        {"sku": 3, "@key": {"id": 7}},
    ]
    (tmp_path / "r.ndjson").write_text("\n".join(map(json.dumps, lines)))
    encode = Encoder(OTHER).encode
    records = [*FileRecords(str(tmp_path / "r.ndjson"), Types(OneSchema(OTHER)), encode)]
    assert [(one.key, one.headers) for one in records] == [
        (b"c-7", (("ce_type", b"paid"),)),
        (b"7", ()),
        (b"", ()),
    ]
    assert [one.value for one in records] == [encode({"sku": sku}) for sku in (1, 2, 3)]
