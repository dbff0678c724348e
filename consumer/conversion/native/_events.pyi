from collections.abc import Sequence

from consumer.avro.origin import OriginOf
from consumer.conversion.program import Program
from consumer.conversion.rules import Rule
from consumer.engine.model import Record
from consumer.engine.reading import Columns

SOURCES: str

class Events:
    def __init__(self, program: Program) -> None: ...
    def read(
        self,
        records: Sequence[Record | None],
        columns: Columns,
        framing: bytes,
        start: int,
        oldest: float,
        present: float,
        origin: OriginOf | None = None,
    ) -> None: ...

class Shortcut:
    def __init__(self, rule: Rule, canonical: int) -> None: ...
    def __call__(self, value: object) -> object: ...

# For the property tests.
def written(value: object) -> bytes: ...
def digests_of(texts: list[bytes]) -> list[str]: ...
def hash_with_instructions(wanted: bool) -> bool: ...
def hashes_four_keys() -> bool: ...
