"""The closed set of reasons why bytes or a line could not become a commerce event.

Every verdict of stage ``decode`` is made here, so that dead letters, metrics and the README share one list
of codes. A verdict is a value (`Rejection`), never an exception: one bad record must not stop the others.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from consumer.avro.schema import shown
from consumer.engine.model import Rejection, Stage


class DecodeCode(StrEnum):
    """Why a record was rejected at stage ``decode``: the dead letter's ``pinstream.code``."""

    EMPTY = "empty"
    """The value has no bytes (a tombstone has no value at all, and is not rejected)."""
    UNKNOWN_WIRE_FORMAT = "unknown_wire_format"
    """The record does not say, in any way we read, which schema it was written with."""
    TRUNCATED_HEADER = "truncated_header"
    """It starts to name its schema, and ends before it has."""
    NO_SUCH_SCHEMA = "no_such_schema"
    """It names a schema that the registry (or the schemas folder) says does not exist."""
    INCOMPATIBLE_SCHEMA = "incompatible_schema"
    """Its schema, or the part of it that this record uses, cannot be resolved to ours."""
    UNDECODABLE = "undecodable"
    """Its bytes are not a datum of the schema it names."""
    TRAILING_BYTES = "trailing_bytes"
    """Bytes are left over after the datum: most likely it names the wrong schema."""
    NOT_JSON = "not_json"
    """A line of an NDJSON file is not JSON."""
    NOT_AN_OBJECT = "not_an_object"
    """A line of an NDJSON file is JSON, but not an object."""
    MISFIT = "misfit"
    """A line of an NDJSON file does not have the shape of the schema."""
    TOO_LARGE = "too_large"
    """A line of an NDJSON file is larger or deeper than we read; or a record has an array of too many items."""


_LONGEST_MESSAGE: Final = 500
"""Characters: a schema's names may be of any length, and a message is a header of the dead letter."""


def rejected(code: DecodeCode, message: str) -> Rejection:
    """The verdict of stage ``decode``; `message` must name schemas, fields and types only, never data."""
    return Rejection(Stage.DECODE, code.value, shown(message, _LONGEST_MESSAGE))
