"""The floor does pinstream's job: it makes the same bytes of the same records, so that the two may be compared."""

from __future__ import annotations

import json
import struct
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from benchmarks.load import SCHEMA, encoded_checkouts
from benchmarks.systems import Unavailable, build_floor
from consumer.avro.decode import Decoder, OneSchema
from consumer.conversion.converter import Converter
from consumer.conversion.reading import CompiledReading
from consumer.engine.model import Record
from tests.engine.building import Read, read_by
from tests.support.machine_code import AVX_512, dirty_hashing, functions, hashing
from tests.support.mapping import load_mapping

_EVENTS = 20_000
_SIZES = (200, 1_000, 4_000, 20_000)
"""Sizes of events beside the usual one, as `make bench` measures them."""
_EVENTS_OF_A_SIZE = 200
_REFUSED = 3
"""The floor's exit code for records that it is not made for."""


@pytest.fixture(scope="module", params=["-march=native", ""], ids=["this processor", "any processor"])
def floor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, once with this processor's instructions for SHA-256 and once without."""
    return _built(tmp_path_factory.mktemp("floor"), *filter(None, [request.param]))


def _built(folder: Path, *options: str) -> Path:
    binary = folder / "floor"
    try:
        build_floor(binary, *options)
    except Unavailable as error:
        if "no C compiler" not in str(error):
            raise
        pytest.skip(f"a C compiler is not installed: {error}")
    return binary


def test_the_floor_makes_the_same_bytes(floor: Path) -> None:
    """JSON of 20,000 of the benchmark's events, identical to what pinstream sends of them."""
    values, made = _made_by_pinstream(_EVENTS, 395, 1)
    assert _made_by_floor(floor, values) == made


@pytest.mark.parametrize("event_bytes", _SIZES)
def test_the_floor_makes_the_same_bytes_of_other_sizes(floor: Path, event_bytes: int) -> None:
    """Fewer facts, or more items."""
    values, made = _made_by_pinstream(_EVENTS_OF_A_SIZE, event_bytes, 2)
    assert _made_by_floor(floor, values) == made


@pytest.mark.parametrize(
    ("canonical", "other"),
    [
        (b"order_completed", b"order_cancelled"),
        (b"@example", b"_example"),
        (b"https://", b'https:/"'),
        (b"USD", b"U1D"),
        (b"\x02\x0cshirts", b"\x02\x0cshirt"),
    ],
    ids=["another event", "no e-mail", "to be escaped", "no currency", "cut"],
)
def test_what_the_floor_is_not_made_for_ends_it(floor: Path, canonical: bytes, other: bytes) -> None:
    """It has no rule for an unusual record, and must not send it by another rule."""
    [value] = encoded_checkouts(1, 395, 3)
    assert canonical in value
    done = _run(floor, [value.replace(canonical, other, 1)])
    assert (done.returncode, done.stdout) == (_REFUSED, b"")


@pytest.mark.slow("compiles the floor for each processor")
@pytest.mark.parametrize("options", [["-march=native"], *AVX_512])
def test_it_is_the_floor_on_every_processor(tmp_path: Path, options: list[str]) -> None:
    """Its SHA instructions meet no upper halves that AVX code has left in use, whatever it is compiled for."""
    found = functions(_built(tmp_path, *options))
    assert dirty_hashing(found) == []
    assert hashing(found) == {"sha256_all"} or options == ["-march=native"]  # this processor may have none


def _made_by_floor(floor: Path, values: Sequence[bytes]) -> list[bytes]:
    done = _run(floor, values)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.splitlines()


def _run(floor: Path, values: Sequence[bytes]) -> subprocess.CompletedProcess[bytes]:
    records = b"".join(struct.pack("<I", len(value)) + value for value in values)
    return subprocess.run([floor, "convert"], input=records, capture_output=True, timeout=60, check=False)


@cache
def _made_by_pinstream(*events: int) -> tuple[list[bytes], list[bytes]]:
    """The values of these events, and what pinstream sends of them: once for both programs."""
    values = encoded_checkouts(*events)
    schema = json.loads(SCHEMA.read_text())
    default = SCHEMA.with_name("commerce_event.mapping.toml").read_text()
    mapping = load_mapping(None, schema, default_toml=default)
    converter = Converter(mapping, accounts=("1",), max_event_age=604800.0)
    records = [Record(at, -1, None, value, ()) for at, value in enumerate(values)]
    read = read_by(CompiledReading(Decoder(OneSchema(schema)), converter), records, time.time())
    return values, [one.body for one in read if isinstance(one, Read)]
