"""Questions and answers of `pinstream check`, and what the questions learn from each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from consumer.adapters.kafka.cluster import ClusterView
from consumer.conversion.sections import Sections
from consumer.errors import MappingError
from consumer.settings import Settings

# Time limit in seconds of each question to another process.
TIMEOUT = 10.0


class Verdict(Enum):
    """The word in the table; the worst is last."""

    SKIPPED = "skipped"
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class CheckRow(NamedTuple):
    """One answered question: what was found and, if it is wrong, how to correct it."""

    what: str
    verdict: Verdict
    text: str


class Said(NamedTuple):
    """A good answer, with warnings of what may still surprise. `details` are rows of their own."""

    text: str
    warnings: Sequence[str] = ()
    details: Sequence[str] = ()


class Skip(Exception):
    """The question needs something that an earlier one did not find; the text says what."""


@dataclass(slots=True)
class Found:
    """What the questions learn from each other."""

    settings: Settings
    # None: the mapping or a schema is wrong, or the question was not asked yet.
    sections: Sections | None = None
    mapping_error: MappingError | None = None
    cluster: ClusterView | None = None
    # The value of `--workers`; None without this option.
    workers: str | None = None
    # Whether `--send-test-event` is given.
    sends: bool = False


# Raises `PinstreamError`, whose message says what to correct, and `Skip`.
Question = Callable[[Found], Awaitable[Said]]


def cluster_of(found: Found) -> ClusterView:
    """Return the cluster. Raises `Skip` if it was not found."""
    if found.cluster is None:
        raise Skip("needs the brokers and topics")
    return found.cluster


def counted(number: int, what: str) -> str:
    """``1 partition``, ``1,200 partitions``."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
