"""A pinstream whose fast path is off: decoding and converting cost twice what they should.

Python imports this by itself when the folder is on the path (`test_ratio` puts it there), before the product's own
code. Should the product no longer go through these two, the guard's test says that it is not slowed: slow what it goes
through then.
"""

from __future__ import annotations

from typing import Any

from consumer.app import building
from consumer.avro.decode import Decoder
from consumer.conversion.converter import Converter

_decode, _convert = Decoder.decode, Converter.convert


def _decode_twice(self: Decoder, *arguments: Any, **named: Any) -> Any:
    _decode(self, *arguments, **named)
    return _decode(self, *arguments, **named)


def _convert_twice(self: Converter, *arguments: Any, **named: Any) -> Any:
    _convert(self, *arguments, **named)
    return _convert(self, *arguments, **named)


vars(building)["COMPILED"] = None
# That they are replaced is what this file is for.
Decoder.decode = _decode_twice  # type: ignore[method-assign]
Converter.convert = _convert_twice  # type: ignore[method-assign]
