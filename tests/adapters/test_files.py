"""FILE of explain, produce and demo: NDJSON or an Avro container, to its end or an error that says where."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastavro
import pytest

from consumer.adapters.files import FileRecord, Types, open_records
from consumer.avro.decode import OneSchema
from consumer.engine.model import Rejection
from consumer.errors import InputError

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "shop.Event",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["RED"]}, "default": "RED"},
    ],
}
WRITER: dict[str, Any] = {
    **SCHEMA,
    "fields": [
        {"name": "gone", "type": ["null", "string"]},
        {"name": "id", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}


def container(path: Path, schema: dict[str, Any], events: list[dict[str, Any]], **more: Any) -> str:
    """Write an Avro container with fastavro; return its path."""
    with path.open("wb") as file:
        fastavro.writer(file, schema, events, **more)
    return str(path)


def writer_event(number: int) -> dict[str, Any]:
    """Return record `number` in the schema `WRITER`."""
    return {"gone": "x", "id": f"e{number}", "at": 1_000_000 + number}


def event(number: int) -> dict[str, Any]:
    """Return record `number` in the schema `SCHEMA`."""
    return {"id": f"e{number}", "at": (1_000_000 + number) // 1000, "colour": "RED"}


def taken(records: Iterator[FileRecord]) -> tuple[list[FileRecord], str | None]:
    """Return all records that can be read, and the error that ended the reading, or None."""
    read = []
    while True:
        try:
            read.append(next(records))
        except StopIteration:
            return read, None
        except InputError as error:
            return read, str(error)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("id,at\na,1\nb,2\n", 3),
        ('[\n  {"id": "a", "at": 1},\n  {"id": "b", "at": 2}\n]\n'.replace("  {", "  ["), 4),
        ('[{"id": "a", "at": 1}]', 1),
        ('"a"\n\nnull\n', 2),
    ],
    ids=["CSV", "lines of no object", "an array", "values"],
)
def test_a_file_without_an_object_is_no_ndjson(text: str, lines: int, tmp_path: Path) -> None:
    """The error comes behind the verdict on each line; with a single object it is NDJSON."""
    path = tmp_path / "events"
    path.write_text(text)
    read, error = taken(open_records(str(path), Types(OneSchema(SCHEMA))))
    assert len(read) == lines
    assert error is not None
    assert error.startswith(
        f"{path} is not NDJSON: no line of it ({lines} in all) is a JSON object; write each record as one"
    )
    path.write_text(f"{text}\n{{}}")
    read, error = taken(open_records(str(path), Types(OneSchema(SCHEMA))))
    assert (len(read), error) == (lines + 1, None)


def test_ndjson_goes_on_after_a_line_that_does_not_fit(tmp_path: Path) -> None:
    """Blank lines are no records, and the last line needs no newline."""
    path = tmp_path / "events.ndjson"
    path.write_bytes(b'{"id": "a", "at": 1}\r\n\n  \nnonsense\n{"id": 7, "at": "1970-01-01T00:00:01Z"}')
    first, second, third = open_records(str(path), Types(OneSchema(SCHEMA)))
    assert first == (1, {"id": "a", "at": 1, "colour": "RED"})
    assert second.ordinal == 4
    assert isinstance(second.event, Rejection)
    assert third == (5, {"id": "7", "at": 1000, "colour": "RED"})


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz"])
def test_a_container_is_resolved_to_our_schema(tmp_path: Path, codec: str) -> None:
    """Whatever its name: fields are dropped and added, and units converted, over several blocks."""
    events = [writer_event(number) for number in range(500)]
    path = container(tmp_path / "events.ndjson", WRITER, events, sync_interval=100, codec=codec)
    expected = [(number + 1, event(number)) for number in range(500)]
    assert list(open_records(path, Types(OneSchema(SCHEMA)))) == expected


def test_an_unknown_codec_is_an_error(tmp_path: Path) -> None:
    """A file with an unknown codec gives an error that names the codec."""
    path = Path(container(tmp_path / "f", WRITER, [writer_event(1)], codec="deflate"))
    path.write_bytes(path.read_bytes().replace(b"deflate", b"snoopy!"))
    _, error = taken(open_records(str(path), Types(OneSchema(SCHEMA))))
    assert error is not None
    assert "its codec 'snoopy!' is not read" in error


def test_a_datum_that_does_not_fit_is_rejected_and_the_rest_is_read(tmp_path: Path) -> None:
    """A datum that does not fit the reader's schema is rejected alone, and the next ones are read."""
    colours = {"type": "enum", "name": "Colour", "symbols": ["BLUE", "RED"]}
    writer = {**SCHEMA, "fields": [{"name": "colour", "type": colours}, *SCHEMA["fields"][:2]]}
    events = [{"id": "a", "at": 1, "colour": colour} for colour in ("RED", "BLUE", "RED")]
    first, second, third = open_records(container(tmp_path / "f", writer, events), Types(OneSchema(SCHEMA)))
    assert first.event == third.event == {"id": "a", "at": 1, "colour": "RED"}
    assert isinstance(second.event, Rejection)
    assert second.event.code == "incompatible_schema"


def test_a_container_of_another_schema_is_an_error(tmp_path: Path) -> None:
    """A container of another schema is an error before the first record, since none could be read."""
    other = {"type": "record", "name": "shop.Other", "fields": []}
    path = container(tmp_path / "f", other, [{}])
    with pytest.raises(InputError, match=r"its schema cannot be read as ours: shop\.Other"):
        open_records(path, Types(OneSchema(SCHEMA)))


def test_a_broken_block_is_an_error_after_what_could_be_read(tmp_path: Path) -> None:
    """When a container is cut anywhere, the records of all whole blocks are read before the error, and no others."""
    events = [writer_event(number) for number in range(60)]
    whole = Path(container(tmp_path / "whole", WRITER, events, sync_interval=50, codec="null")).read_bytes()
    cut = tmp_path / "cut"
    for length in range(5, len(whole), 7):
        cut.write_bytes(whole[:length])
        try:
            read, error = taken(open_records(str(cut), Types(OneSchema(SCHEMA))))
        except InputError as failure:
            read, error = [], str(failure)
        assert [record.event for record in read] == [event(number) for number in range(len(read))]
        assert error is not None or len(read) < len(events)  # a cut between two blocks does not show
        assert error is None or "\n" not in error


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_damage_anywhere_never_raises_anything_else(tmp_path: Path, codec: str) -> None:
    """With one byte changed anywhere, reading returns records or raises an `InputError`."""
    events = [writer_event(number) for number in range(10)]
    whole = Path(container(tmp_path / "whole", WRITER, events, sync_interval=50, codec=codec)).read_bytes()
    damaged = tmp_path / "damaged"
    for at in range(4, len(whole), 3):
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        with suppress(InputError):
            assert len(taken(open_records(str(damaged), Types(OneSchema(SCHEMA))))[0]) <= 10_000


def test_what_cannot_be_opened_is_an_error_of_one_line(tmp_path: Path) -> None:
    """At once, and it names the file; an empty file is no error."""
    (tmp_path / "empty").touch()
    assert list(open_records(str(tmp_path / "empty"), Types(OneSchema(SCHEMA)))) == []
    with pytest.raises(InputError, match=r"nowhere cannot be read: No such file"):
        open_records(str(tmp_path / "nowhere"), Types(OneSchema(SCHEMA)))
    with pytest.raises(InputError, match=r"cannot be read: Is a directory"):
        open_records(str(tmp_path), Types(OneSchema(SCHEMA)))


def test_a_line_that_is_too_large_is_rejected_and_read_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that is too large is rejected in bounded memory, and the next one is read."""
    for module in ("consumer.adapters.files", "consumer.avro.ndjson"):
        monkeypatch.setattr(f"{module}.MAX_LINE_BYTES", 100)
    path = tmp_path / "f"
    for padding in (100, 101, 1000):
        path.write_bytes(b'{"id": "' + b"x" * padding + b'", "at": 1}\n{"id": "b", "at": 1}\n')
        large, small = open_records(str(path), Types(OneSchema(SCHEMA)))
        assert isinstance(large.event, Rejection)
        assert large.event.code == "too_large"
        assert small == (2, {"id": "b", "at": 1, "colour": "RED"})


def test_standard_input_of_either_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``-`` standard input is read, NDJSON or a container, and left open."""
    avro = Path(container(tmp_path / "f", WRITER, [writer_event(1)])).read_bytes()
    for data, expected in (
        (avro, event(1)),
        (b'{"id": "a", "at": 1}\n', {"id": "a", "at": 1, "colour": "RED"}),
    ):
        stream = io.BytesIO(data)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        assert list(open_records("-", Types(OneSchema(SCHEMA)))) == [(1, expected)]
        assert not stream.closed


def test_a_closed_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed standard input, for which Python has None, is an error."""
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed: name a file"):
        open_records("-", Types(OneSchema(SCHEMA)))


def test_a_pipe_is_read_as_it_trickles_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of a pipe is returned as soon as it is complete, even if its first bytes come one by one."""
    out, into = os.pipe()
    go_on = threading.Event()
    reported: list[bool] = []

    def write() -> None:
        for byte in b'{"id':
            os.write(into, bytes([byte]))
        os.write(into, b'": "a", "at": 1}\n{"id"')
        reported.append(go_on.wait(5))
        os.write(into, b': "b", "at": 2}\n')
        os.close(into)

    writing = threading.Thread(target=write)
    writing.start()
    with os.fdopen(out, "rb") as stream:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))
        records = open_records("-", Types(OneSchema(SCHEMA)))
        assert next(records).event == {"id": "a", "at": 1, "colour": "RED"}
        go_on.set()
        assert [record.ordinal for record in records] == [2]
    writing.join(10)
    assert reported == [True]  # the first line was returned before the second was written


def test_the_file_is_closed_with_the_iterator(tmp_path: Path) -> None:
    """Also if it was not read to its end."""
    path = tmp_path / "f"
    path.write_bytes(b'{"id": "a", "at": 1}\n' * 3)
    before = os.listdir("/proc/self/fd")
    records = open_records(str(path), Types(OneSchema(SCHEMA)))
    next(records)
    records.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == len(before)
