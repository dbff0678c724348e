from typing import Any

from consumer.conversion.program import Program
from consumer.engine.model import Record

class Events:
    def __init__(self, program: Program) -> None: ...
    def read(
        self,
        records: list[Record],
        prepared: list[Any],
        framing: bytes,
        start: int,
        oldest: float,
        present: float,
    ) -> None: ...
