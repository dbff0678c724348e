"""A fake decoder, and the schemas that any fake decoder learns: those of the simulation, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from consumer.engine.model import CommerceEvent, Record, Rejection, SchemaRef, Stage
from consumer.engine.reading import SchemaLearner


class LearntSchemas(SchemaLearner):
    """The schemas that a fake decoder was given. Of these, the text ``broken`` can never be read."""

    def __init__(self) -> None:
        self.verdicts: dict[SchemaRef, Rejection | None] = {}
        self.doubted: set[SchemaRef] = set()

    def add_schema(self, ref: SchemaRef, schema_json: Any, kind: str = "AVRO") -> Rejection | None:
        rejection = (
            Rejection(Stage.DECODE, "schema_unusable", "not Avro") if schema_json == "broken" else None
        )
        self.verdicts[ref] = rejection
        self.doubted.discard(ref)
        return rejection

    def doubt(self, ref: SchemaRef) -> None:
        self.doubted.add(ref)

    def forget(self, ref: SchemaRef) -> None:
        self.verdicts.pop(ref, None)
        self.doubted.discard(ref)

    def missing(self, ref: SchemaRef) -> Rejection:
        return Rejection(Stage.DECODE, "schema_missing", "no such schema")


class FakeDecoder(LearntSchemas):
    """Reads the values that `tests.engine.building` makes. It knows no schema at first; many records need none.

    With `sections`, a record's offset decides the section that it belongs to, by turns.
    """

    def __init__(self, sections: Sequence[str] = ()) -> None:
        super().__init__()
        self._sections = len(sections)

    def section_of(self, record: Record, topic: str) -> int:
        """Return the number of the record's section; see `SchemaLearner`."""
        return 1 + record.offset % self._sections if self._sections else 0

    def decode(
        self, record: Record, topic: str = "", partition: int = -1
    ) -> CommerceEvent | Rejection | SchemaRef | None:
        if record.value is None:
            return None
        try:
            decoded: CommerceEvent = orjson.loads(record.value)
        except orjson.JSONDecodeError:
            return Rejection(Stage.DECODE, "malformed", "the value is not an event")
        schema = decoded.get("schema")
        if schema is None:
            return decoded
        ref = SchemaRef("id", schema)
        if ref not in self.verdicts:
            return ref
        rejection = self.verdicts[ref]
        return decoded if rejection is None else ref if ref in self.doubted else rejection
