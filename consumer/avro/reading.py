"""Avro's binary encoding in Python: a function for each primitive type.

Theory of operation. A `Read` takes ``(data, at)`` and returns ``(value, next)``. The functions here read values without
parts; `plan` puts values together. The data come from outside, so each `Read` keeps three promises, and so does the
compiled reader (`native/_slots.pxi`):

* every loop over a count that the data claim consumes at least one byte per round, and reading past the end
  raises (text and bytes may leave the position beyond the end instead: whatever reads next raises, and the
  caller compares the final position with the length);
* memory is allocated only for bytes that are there, never for a claimed length;
* only Python frames nest, so data nested too deeply end in `RecursionError`, not in a dead process. (This is why
  fastavro is not used here: its C code ends the process at 5,000 levels, and reads the negative index -1 of a union or
  enum as the last.)

Bad data raise `ValueError`, `IndexError`, `OverflowError`, `struct.error` or `RecursionError`, which the caller treats
alike. `Unresolvable` is different: the bytes are valid, but our schema has no place for them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final, NoReturn

# From bytes and a position to a value and the next position; see above for what it promises.
Read = Callable[[bytes, int], tuple[Any, int]]

_FLOAT: Final = struct.Struct("<f").unpack_from
_DOUBLE: Final = struct.Struct("<d").unpack_from
_LONG_BITS: Final = 63  # the shift of a long's tenth and last byte


class Unresolvable(Exception):
    """This datum uses a branch or symbol of its schema that ours lacks. Names types only."""


# Items of an array that is kept. An item of one byte may become a record of many defaults, some hundred bytes each.
MAX_ITEMS: Final = 10_000


class TooManyItems(Exception):
    """This datum holds an array of more items than are kept."""


def read_null(_data: bytes, at: int) -> tuple[None, int]:
    """Read null, which takes no bytes."""
    return None, at


def read_boolean(data: bytes, at: int) -> tuple[bool, int]:
    """Read a boolean: one byte, 0 or 1."""
    # An index beyond the end raises: nothing here asks for the length.
    byte = data[at]
    if byte > 1:
        raise ValueError("a boolean is 0 or 1")
    return byte == 1, at + 1


def read_long(data: bytes, at: int) -> tuple[int, int]:
    """Read a zig-zag number of at most 64 bits."""
    byte = data[at]
    at += 1
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at
    number = byte & 127
    shift = 7
    while byte > 127:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
        # The tenth byte has room for one bit; beyond that the number would be cut.
        if shift > _LONG_BITS and (byte > 1 or shift > _LONG_BITS + 7):
            raise ValueError("a long has at most 64 bits")
    return (number >> 1) ^ -(number & 1), at


def read_int(data: bytes, at: int) -> tuple[int, int]:
    """Read a zig-zag number of at most 32 bits."""
    byte = data[at]
    if byte < 128:
        return (byte >> 1) ^ -(byte & 1), at + 1
    number, at = read_long(data, at)
    if not -0x80000000 <= number <= 0x7FFFFFFF:
        raise ValueError("an int has at most 32 bits")
    return number, at


def read_long_as_float(data: bytes, at: int) -> tuple[float, int]:
    """Read an int or a long that is promoted to float or double."""
    number, at = read_long(data, at)
    return float(number), at


def read_float(data: bytes, at: int) -> tuple[float, int]:
    """Read four bytes, little-endian."""
    return _FLOAT(data, at)[0], at + 4


def read_double(data: bytes, at: int) -> tuple[float, int]:
    """Read eight bytes, little-endian."""
    return _DOUBLE(data, at)[0], at + 8


def read_length(data: bytes, at: int) -> tuple[int, int]:
    """Read a number that must not be negative."""
    length, at = read_long(data, at)
    if length < 0:
        raise ValueError("a negative length")
    return length, at


def read_string(data: bytes, at: int) -> tuple[str, int]:
    """Read a length, and that many bytes of UTF-8. May leave the position beyond the end (see above)."""
    byte = data[at]
    # One byte, and not negative: text of up to 63 bytes, which is most of it.
    if not byte & 0x81:
        at += 1
        end = at + (byte >> 1)
    elif not byte & 1 and (high := data[at + 1]) < 128:  # two bytes: the length of most URLs and user agents
        at += 2
        end = at + (high << 6 | byte >> 1 & 63)
    else:
        length, at = read_length(data, at)
        end = at + length
    return data[at:end].decode(), end


def read_bytes(data: bytes, at: int) -> tuple[bytes, int]:
    """Read a length, and that many bytes. May leave the position beyond the end (see above)."""
    length, at = read_length(data, at)
    end = at + length
    return data[at:end], end


# How a primitive of the writer is read as one of ours; a pair that is not here does not resolve.
PROMOTIONS: Final[dict[tuple[str, str], Read]] = {
    ("null", "null"): read_null,
    ("boolean", "boolean"): read_boolean,
    ("int", "int"): read_int,
    ("int", "long"): read_int,
    ("int", "float"): read_long_as_float,
    ("int", "double"): read_long_as_float,
    ("long", "long"): read_long,
    ("long", "float"): read_long_as_float,
    ("long", "double"): read_long_as_float,
    ("float", "float"): read_float,
    ("float", "double"): read_float,
    ("double", "double"): read_double,
    ("string", "string"): read_string,
    ("string", "bytes"): read_bytes,
    ("bytes", "bytes"): read_bytes,
    ("bytes", "string"): read_string,
}


def read_fixed(size: int, data: bytes, at: int) -> tuple[bytes, int]:
    """Read this many bytes; used through `partial`, which makes a `Read` of it."""
    end = at + size
    # A fixed has no length whose reading would fail beyond the end, so the end is checked here.
    if end > len(data):
        raise ValueError("the data end inside a fixed")
    return data[at:end], end


def read_count(data: bytes, at: int) -> tuple[int, int]:
    """Read the count of a block. After a negative one comes the block's size, which only skipping would need."""
    byte = data[at]
    if not byte & 0x81:  # one byte, and not negative: nearly every count
        return byte >> 1, at + 1
    count, at = read_long(data, at)
    if count < 0:
        _, at = read_length(data, at)
    return abs(count), at


def refuse(reason: str, _data: bytes, _at: int) -> NoReturn:
    """Raise for data that use a branch which cannot be resolved; used through `partial`, which makes a `Read` of it."""
    raise Unresolvable(reason)
