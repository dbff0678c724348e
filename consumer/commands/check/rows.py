"""What an answer looks like, and what the questions learn from each other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from consumer.adapters.kafka import ClusterView
from consumer.conversion.mapping import Mapping
from consumer.settings import Settings

TIMEOUT = 10.0
"""Seconds that each question to someone outside may take."""


class Verdict(Enum):
    """The word in the table, worst last."""

    SKIPPED = "skipped"
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class CheckRow(NamedTuple):
    """One answered question: what was found and, where that is wrong, how to mend it."""

    what: str
    verdict: Verdict
    text: str


class Said(NamedTuple):
    """A good answer, and what may still surprise."""

    text: str
    warnings: Sequence[str] = ()


class Skip(Exception):
    """The question needs what an earlier one could not get; the text says what."""


@dataclass(slots=True)
class Found:
    """What the questions learn from each other."""

    settings: Settings
    schema: dict[str, Any] | None = None
    mapping: Mapping | None = None
    cluster: ClusterView | None = None
    workers: str | None = None
    """As ``--workers`` has it; None: it was not asked for."""


Question = Callable[[Found], Awaitable[Said]]
"""Raises `PinstreamError`, whose line says how to mend it, and `Skip`."""


def cluster_of(found: Found) -> ClusterView:
    """The cluster. Raises `Skip` when it could not be had."""
    if found.cluster is None:
        raise Skip("needs the brokers and topics")
    return found.cluster


def counted(number: int, what: str) -> str:
    """``1 partition``, ``1,200 partitions``."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
