"""How the records of a world are written and read, by name: ``fake``, or real Avro in one of three ways.

``both`` reads all of it in two steps and on the fast path, and requires the same of both. The engine sees nothing else
of a reading, so what holds in such a world holds in a world of either of them.
"""

from __future__ import annotations

from tests.simulation.avro_records import AvroForm
from tests.simulation.records import FakeForm, Form

FORMS: dict[str, Form] = {
    "fake": FakeForm(),
    "two-steps": AvroForm("two-steps"),
    "fast": AvroForm("fast"),
    "both": AvroForm("both"),
}
CANONICAL = ("fake", "both")
"""The readings with which each seed is run; together they cover the others."""
