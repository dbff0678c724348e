"""What every target promises, whatever the bytes: verdicts that can be stored and shown, and work that has a bound.

Time is the process's own (other processes do not count), memory what Python's allocator gives out at most. Both
may grow with the input, at a rate that leaves room for a slow machine and none for a square. Under atheris code
is instrumented and several times slower, and memory is watched by libFuzzer instead (``-rss_limit_mb``).
"""

from __future__ import annotations

import contextlib
import time
import tracemalloc
from collections.abc import Iterator

from consumer.engine.model import Rejection, Stage
from tests.fuzzing.provider import MARK

LONGEST_MESSAGE = 600
"""Characters of a message; it becomes a Kafka header and a line."""
_SECONDS, _SECONDS_A_BYTE = 1.0, 5e-6
_BYTES, _BYTES_A_BYTE = 16 << 20, 3_000


class Measuring:
    """How strictly work is measured in this process."""

    slowness = 1.0
    """A factor for the allowed time."""
    memory = False
    """Whether peaks of memory are measured (which takes three times as long)."""


@contextlib.contextmanager
def bounded(size: int, max_memory: int | None = None) -> Iterator[None]:
    """Fails if what is done inside takes more time or memory than input of `size` bytes may.

    `max_memory`: a bound in bytes, where there is a tighter one.
    """
    if Measuring.memory:
        tracemalloc.start()
    started = time.process_time()
    try:
        yield
        seconds = time.process_time() - started
        peak = tracemalloc.get_traced_memory()[1] if Measuring.memory else 0
    finally:
        tracemalloc.stop()
    allowed = (_SECONDS + _SECONDS_A_BYTE * size) * Measuring.slowness * (4 if Measuring.memory else 1)
    assert seconds <= allowed, f"{seconds:.1f} s for {size} bytes"
    memory = _BYTES + _BYTES_A_BYTE * size if max_memory is None else max_memory
    assert peak <= memory, f"{peak >> 20} MiB for {size} bytes"


def check_line(text: str) -> None:
    """The text is one line that can be stored as UTF-8, has no personal data, and does not report a lack of memory."""
    assert len(text) <= LONGEST_MESSAGE, f"a message of {len(text)} characters"
    assert text.isprintable(), "a message of more than one line, or that is not Unicode"
    assert MARK not in text, "a message holds personal data"
    assert "MemoryError" not in text, "memory was asked for that is not there"


def check_rejection(rejection: Rejection, stage: Stage, codes: frozenset[str]) -> None:
    """The verdict has this stage and one of these codes."""
    assert rejection.stage is stage
    assert rejection.code in codes, f"{rejection.code}: {rejection.message}"
    check_line(rejection.message)


def values_in(value: object) -> int:
    """How many values there are, without keys."""
    count, waiting = 0, [value]
    while waiting:
        one = waiting.pop()
        count += 1
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return count
