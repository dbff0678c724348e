"""A mapping alone, as most tests need one: for one schema, of a file without sections."""

from __future__ import annotations

from dataclasses import dataclass

from consumer.avro.paths import AvroSchema
from consumer.conversion.mapping import Mapping
from consumer.conversion.sections import Sections, load_sections


@dataclass(frozen=True)
class _One:
    """A folder with one schema, whatever its name."""

    schema: AvroSchema

    def reader(self, name: str) -> AvroSchema:
        """Return the schema."""
        return self.schema

    record = reader


def load_sections_of(
    overlay_toml: str | None, schema: AvroSchema, *, default_toml: str, overlay_name: str = "mapping"
) -> Sections:
    """Return the mapping of a file for this schema, as `load_sections` makes it."""
    return load_sections(
        overlay_toml, _One(schema), default_toml=default_toml, overlay_name=overlay_name, schema_name=""
    )


def load_mapping(
    overlay_toml: str | None, schema: AvroSchema, *, default_toml: str, overlay_name: str = "mapping"
) -> Mapping:
    """Return the mapping of a file that has no sections."""
    sections = load_sections_of(overlay_toml, schema, default_toml=default_toml, overlay_name=overlay_name)
    return sections.all[0].mapping
