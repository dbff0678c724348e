"""How records can be read in a world, by name: ``fake``, or real bytes in ``two-steps`` or ``fast``."""

from __future__ import annotations

from tests.simulation.avro_records import AvroForm
from tests.simulation.records import FakeForm, Form

FORMS: dict[str, Form] = {
    "fake": FakeForm(),
    "two-steps": AvroForm(fast=False),
    "fast": AvroForm(fast=True),
}
