"""The answers of a question of `pinstream check`, and the results that later questions use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import NamedTuple

from consumer.adapters.kafka.cluster import ClusterView
from consumer.conversion.sections import Sections
from consumer.engine.records.commits import DESTINATION
from consumer.errors import MappingError
from consumer.settings import Settings

# Time limit in seconds of each question to another process.
TIMEOUT = 10.0


_ONE = "give all members the same, or finish the rollout"
OF_SETTINGS = {
    "mapping": f"mapping (PINSTREAM_MAPPING_FILE): {_ONE}",
    "schemas": f"schema (PINSTREAM_SCHEMAS_DIR): {_ONE}",
    "function": f"function (PINSTREAM_TRANSFORM): {_ONE}",
    DESTINATION: "PINTEREST_API_URL for the same ad account, so each has a quota and a memory of delivered events of "
    "its own: give all the same, or say that both lead to Pinterest (PINSTREAM_DESTINATION)",
}
"""In what members may differ (`commits.differing_from`), where it is set, and what to do."""


class Severity(Enum):
    """The word in the table; the worst is last."""

    SKIPPED = "skipped"
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Row(NamedTuple):
    """One row of the table: what was found and, if it is wrong, how to correct it."""

    verdict: Severity
    text: str


ok = partial(Row, Severity.OK)
warning = partial(Row, Severity.WARNING)
failed = partial(Row, Severity.FAILED)


class Skip(Exception):
    """The question needs something that an earlier one did not find; the text says what."""


@dataclass(slots=True)
class CheckContext:
    """The command's options, and results of questions that later questions use."""

    settings: Settings
    # The value of `--workers`; None without this option.
    workers: str | None = None
    # Whether `--send-test-event` is given.
    sends: bool = False
    # None: the mapping or a schema is wrong, or the question was not asked yet.
    sections: Sections | None = None
    mapping_error: MappingError | None = None
    cluster: ClusterView | None = None
    # Why the registry does not answer; empty if it does.
    registry_problem: str = ""


# A question returns no answer if its subject is not configured. It may raise `Skip`, or `PinstreamError`, whose message
# says what to correct.
Question = Callable[[CheckContext], Awaitable[Sequence[Row]]]


def cluster_of(found: CheckContext) -> ClusterView:
    """Return the cluster. Raises `Skip` if it was not found."""
    if found.cluster is None:
        raise Skip("needs the brokers and topics")
    return found.cluster
