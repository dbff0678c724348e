"""Malicious Avro container files: decompression bombs, false sizes and counts, wrong markers.

The codec part (`consumer.avro.container`) and `explain` on top of it, which turns every break into one line.
"""

from __future__ import annotations

import bz2
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import fastavro
import pytest

from consumer.avro.container import MAX_BLOCK_BYTES, BrokenContainer, Container, DataBlock
from tests.fuzzing.building import CODECS, SCHEMA, block, header
from tests.fuzzing.contract import Measuring, bounded, check_line
from tests.fuzzing.records import check_explaining
from tests.support import avro
from tests.support.avro import zigzag

SYNC = b"S" * 16
TEXT = json.dumps(SCHEMA).encode()
Packed = Callable[[bytes], bytes]


@pytest.fixture(autouse=True)
def _measured() -> Iterator[None]:
    """Measure memory in this process."""
    Measuring.memory = True
    yield
    Measuring.memory = False


def blocks_of(content: bytes) -> list[DataBlock]:
    """All blocks of a file of these bytes."""
    return list(Container(io.BytesIO(content).read).blocks())


def broken(content: bytes) -> str:
    """Why the file cannot be read to its end; finding out takes no more time and memory than one block may take."""
    with bounded(len(content) + MAX_BLOCK_BYTES // 1_000), pytest.raises(BrokenContainer) as caught:
        blocks_of(content)
    check_line(str(caught.value))
    return str(caught.value)


def bomb(packer: Any, megabytes: int) -> bytes:
    """`megabytes` of zeros, compressed."""
    parts = [packer.compress(b"\x00" * (1 << 20)) for _ in range(megabytes)]
    return b"".join([*parts, packer.flush()])


@pytest.mark.parametrize("codec", CODECS)
def test_what_fastavro_writes_is_read(codec: str) -> None:
    """Every codec of the standard library, over several blocks."""
    out = io.BytesIO()
    events: list[dict[str, Any]] = [{"id": f"e{number}"} for number in range(200)]
    schema: dict[str, Any] = avro.record("E", id="string")
    fastavro.writer(out, schema, events, codec=codec, sync_interval=100)
    blocks = blocks_of(out.getvalue())
    assert len(blocks) > 5
    assert sum(one.records for one in blocks) == 200
    assert b"".join(one.data for one in blocks) == b"".join(
        zigzag(len(e["id"])) + e["id"].encode() for e in events
    )


@pytest.mark.parametrize(
    ("codec", "make"),
    [
        (b"deflate", lambda: bomb(zlib.compressobj(9, zlib.DEFLATED, -15), 80)),
        (b"bzip2", lambda: bomb(bz2.BZ2Compressor(), 80)),
        (b"xz", lambda: bomb(lzma.LZMACompressor(preset=0), 80)),
    ],
    ids=["deflate", "bzip2", "xz"],
)
def test_a_bomb_is_not_unpacked(codec: bytes, make: Callable[[], bytes]) -> None:
    """Eighty megabytes in a few kilobytes: unpacking ends with an error at 64 MiB."""
    packed = make()
    assert len(packed) < 100_000
    assert "64 MiB" in broken(header(TEXT, codec, SYNC) + block(1, packed, SYNC))


def test_a_block_that_claims_gigabytes_of_working_memory_is_not_unpacked() -> None:
    """An xz block says beforehand how much its dictionary takes: here 1.5 GiB for one byte."""
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    packed = bytearray(lzma.compress(b"x", format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=filters))
    at = packed.index(b"\x21\x01") + 2  # the filter's id and the size of its properties
    packed[at] = 39
    packed[20:24] = zlib.crc32(packed[12:20]).to_bytes(4, "little")
    assert "unpacked" in broken(header(TEXT, b"xz", SYNC) + block(1, bytes(packed), SYNC))


HEAD = header(TEXT, b"null", SYNC)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (HEAD + block(1, b"x", b"W" * 16), "does not end where it says"),
        (HEAD + block(1, b"x", b"S" * 15), "ends in its middle"),
        (HEAD + block(1, b"xy", SYNC, size=1), "does not end where it says"),
        (HEAD + block(1, b"x", SYNC, size=2 << 30), "claims a length of"),
        (HEAD + block(1, b"x", SYNC, size=MAX_BLOCK_BYTES), "ends in its middle"),
        (HEAD + block(1, b"x", SYNC, size=2**62), "claims a length of"),
        (HEAD + block(1, b"x", SYNC, size=-1), "claims a length of"),
        (HEAD + block(2**60, b"", SYNC), "more records than it has bytes"),
        (HEAD + block(2**60, b"x" * 100, SYNC), "more records than it has bytes"),
        (HEAD + block(-1, b"x", SYNC), "more records than it has bytes"),
        (HEAD + b"\xff" * 11, "more than 64 bits"),
        (HEAD + b"\x80", "ends in its middle"),
        (header(TEXT, b"deflate", SYNC) + block(1, b"\xff\xff", SYNC), "cannot be unpacked"),
        (header(TEXT, b"deflate", SYNC) + block(1, CODECS["deflate"](b"x" * 99)[:-2], SYNC), "in the middle of what"),
        (header(TEXT, b"bzip2", SYNC) + block(1, b"BZ", SYNC), "in the middle of what"),
        (header(TEXT, b"bzip2", SYNC) + block(1, b"nonsense", SYNC), "cannot be unpacked"),
        (header(TEXT, b"xz", SYNC) + block(1, b"nonsense....", SYNC), "cannot be unpacked"),
        (header(TEXT, b"snappy", SYNC) + block(1, b"x", SYNC), "'snappy' is not read"),
        (header(TEXT, b"\x1b[2J" + b"x" * 5_000, SYNC), "is not read"),
        (header(TEXT, b"\xff", SYNC), "is not read"),
        (header(b"\xff", b"null", SYNC), "no schema"),
        (b"Obj\x01\x00" + SYNC, "no schema"),
        (b"Obj\x02\x00" + SYNC, "does not begin as one"),
        (b"", "ends in its middle"),
        (b"Obj\x01" + zigzag(2**62) + zigzag(2 << 30), "claims a length of"),
        (b"Obj\x01" + zigzag(2**62) + zigzag(-1), "claims a length of"),
        (b"Obj\x01" + zigzag(2**62) + b"\x00\x00" * (5 << 20), "more than 1000 entries"),
        (b"Obj\x01" + zigzag(-(2**63)) + zigzag(0) + b"\x02k\x04x", "ends in its middle"),
    ],
)  # fmt: skip
def test_lies_are_reported_by_name(content: bytes, why: str) -> None:
    """Each false size or count has an error of its own, and costs neither time nor memory."""
    assert why in broken(content)


def test_a_header_s_last_word_counts_and_empty_blocks_are_blocks() -> None:
    """Metadata in several parts with sizes; a block without records; no block at all."""
    parts = zigzag(-1) + zigzag(9) + zigzag(1) + b"k" + zigzag(1) + b"v" + HEAD[4:]
    assert Container(io.BytesIO(b"Obj\x01" + parts).read).schema == TEXT.decode()
    assert blocks_of(HEAD) == []
    assert blocks_of(HEAD + block(0, b"", SYNC) + block(1, b"x", SYNC)) == [(0, b""), (1, b"x")]


EXPLAIN = [
    (header(TEXT, b"deflate", SYNC), bomb(zlib.compressobj(9, zlib.DEFLATED, -15), 80), None),
    (HEAD, b"x", 2**62),
    (HEAD, b"x", -1),
    (header(TEXT, b"xz", SYNC), b"nonsense", None),
]


@pytest.mark.parametrize(("head", "data", "size"), EXPLAIN, ids=["bomb", "claim", "negative", "nonsense"])
def test_explain_takes_none_of_it(head: bytes, data: bytes, size: int | None) -> None:
    """One error line after the good records, and no memory for data that are not there."""
    assert check_explaining(head + block(1, data, SYNC, size)) == []


def test_explain_does_not_count_to_two_to_the_sixty() -> None:
    """Records without bytes: a file of a hundred bytes printed lines without end."""
    schema = b'{"type": "record", "name": "E", "fields": []}'
    with pytest.raises(BrokenContainer, match="more records"):
        blocks_of(header(schema, b"null", SYNC) + block(2**60, b"", SYNC))


@pytest.mark.parametrize(
    "schema",
    [b"[" * 20_000, b'{"type":' * 900 + b'"int"' + b"}" * 900, b'"' + b"x" * (2 << 20) + b'"', b'"\xed\xa0\x80"'],
    ids=["nested", "types", "large", "surrogate"],
)  # fmt: skip
def test_explain_refuses_a_file_whose_schema_is_none(schema: bytes) -> None:
    """A schema that is nested too deeply, is too large, or is broken UTF-8."""
    assert check_explaining(header(schema, b"null", SYNC) + block(1, b"x", SYNC)) == []
