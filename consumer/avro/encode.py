"""From a commerce event to bytes, for `produce`, `demo` and tests.

fastavro writes the bytes; this module adds the framing by which a reader finds the schema, our schema's defaults for
missing fields, the choice of a union's branch for a value, and errors that hold no data. Values are as in a decoded
event: times are counts of the schema's own unit, decimals are `Decimal`, or text or a number.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import fastavro

from consumer.avro.decode import Choice, framing_of
from consumer.avro.fitting import Fit, Fitter, Misfit, fit_decimal, python_leaf
from consumer.avro.schema import Fixed, Primitive, fingerprint, label, outline, parse
from consumer.avro.values import decimal_to_bytes
from consumer.engine.model import CommerceEvent, SchemaRef, section_of

Encode = Callable[[CommerceEvent], bytes]  # see `Encoder.encode`


class Unencodable(ValueError):
    """An event does not fit the schema it is to be written with. Names fields and types, never data."""


class Encoder:
    """Writes events of one schema (JSON), in Confluent's framing, with the schema's id in a registry.

    Without an id: in the framing of Avro's single-object encoding. Raises `InvalidSchema`, a `ValueError`.
    """

    def __init__(self, schema: dict[str, Any], schema_id: int | None = None) -> None:
        node = parse(schema)
        own = SchemaRef("fingerprint", fingerprint(node))
        self.framing = framing_of(own if schema_id is None else SchemaRef("id", str(schema_id)))
        self._name = label(node)
        self._fitter = Fitter(node, _leaf, "paired")
        # Without logical types: fastavro would convert values that are converted already.
        self._schema = fastavro.parse_schema(outline(node))

    def encode(self, event: CommerceEvent) -> bytes:
        """Return the value of a record that holds `event`. Raises `Unencodable`."""
        out = io.BytesIO()
        # In one buffer with the datum: fastavro appends to the buffer.
        out.write(self.framing)
        try:
            fastavro.schemaless_writer(out, self._schema, self._fitter.fit(event))
        except Misfit as misfit:
            misfit.path.append(self._name)
            raise Unencodable(misfit.described("the event")) from None
        except Exception as error:  # fastavro raises many types of its own, which quote the value
            raise Unencodable(f"the event does not fit its schema ({type(error).__name__})") from None
        return out.getvalue()


def encoding(choice: Choice, schema_ids: Sequence[int] = ()) -> Encode:
    """Return a function that writes an event with its section's schema, as `Encoder` does; `schema_ids`: by section."""
    ids: Sequence[int | None] = schema_ids or [None] * len(choice.all)
    encoders = [Encoder(ours.schema, schema_id) for ours, schema_id in zip(choice.all, ids, strict=True)]
    return lambda event: encoders[section_of(event) - 1].encode(event)


def _leaf(node: Primitive | Fixed) -> Fit:
    """Return a function that makes a value one that fastavro writes without logical types."""
    size = node.size if isinstance(node, Fixed) else None
    family = "" if node.logical is None else node.logical.family
    if node.logical is not None and family == "decimal":
        # Exact, or a misfit: nothing is rounded on the way to a topic.
        make = partial(decimal_to_bytes, logical=node.logical, size=size)
        return fit_decimal(
            (Decimal, str, int, float), make, f"expected a decimal of scale {node.logical.scale}"
        )
    # A UUID that is text is written as it is.
    return python_leaf(node) if family != "uuid" or size is None else _uuid


def _uuid(value: Any) -> bytes:
    try:
        return UUID(str(value)).bytes
    # The text of Python's own error would quote the value.
    except ValueError:
        raise Misfit("expected a UUID") from None
