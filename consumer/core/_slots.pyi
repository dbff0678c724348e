from collections.abc import Callable
from typing import Any

class Program:
    def __init__(
        self,
        operations: list[
            tuple[int, int, int, int, int, int, tuple[str | None, ...] | Callable[..., Any] | None]
        ],
        width: int,
    ) -> None: ...

def read(program: Program, data: bytes, at: int) -> tuple[Any, ...]: ...
