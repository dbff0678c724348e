"""Queries for offsets while partitions change their leaders, on a fake client: no broker does that on demand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as RawPartition

from consumer import errors
from consumer.adapters.kafka.cluster import find_extents
from consumer.engine.model import TopicPartition


@dataclass(frozen=True)
class Refused:
    """The error of one partition's answer."""

    code: int


class Answered:
    """A future that has its answer."""

    def __init__(self, answer: int | Refused) -> None:
        self._answer = answer

    def result(self, _: float) -> SimpleNamespace:
        """Return the offset, or raise the error."""
        if isinstance(self._answer, Refused):
            raise KafkaException(KafkaError(self._answer.code))
        return SimpleNamespace(offset=self._answer)


class Admin:
    """An admin client that plays answers query by query: for each partition an offset or an error."""

    def __init__(self, *answers: dict[int, int | Refused]) -> None:
        self.asked: list[list[int]] = []
        self._answers = list(answers)

    def list_offsets(self, asked: dict[RawPartition, Any], **_: Any) -> dict[RawPartition, Answered]:
        """Return the next answers; the last ones are repeated."""
        self.asked.append([one.partition for one in asked])
        said = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return {one: Answered(said[one.partition]) for one in asked}


NAMES = [TopicPartition("t", 0), TopicPartition("t", 1)]
MOVING = Refused(KafkaError.NOT_LEADER_FOR_PARTITION)
LOGGING_IN = Refused(KafkaError._AUTHENTICATION)
"""The answer to a query during which the connection had to log in again."""


@pytest.mark.parametrize("passing", [MOVING, LOGGING_IN])
def test_a_partition_whose_question_fails_for_a_moment_is_asked_for_again(passing: Refused) -> None:
    """A partition whose query fails for a moment is queried again alone, until it answers."""
    admin = Admin({0: 5, 1: passing}, {1: passing}, {1: 7}, {0: 9, 1: 9})
    extents = find_extents(admin, NAMES, time.monotonic() + 30.0)
    assert [(one.low, one.end) for one in extents.values()] == [(5, 9), (7, 9)]
    assert admin.asked == [[0, 1], [1], [1], [0, 1]]


@pytest.mark.parametrize(("code", "timeout"), [(MOVING, 0.0), (Refused(KafkaError.INVALID_REQUEST), 30.0)])
def test_without_time_or_with_a_lasting_error_the_query_fails_at_once(code: Refused, timeout: float) -> None:
    """Without time, or with an error that does not pass, the query fails at once in one line that names the
    partition."""
    admin = Admin({0: 5, 1: code})
    with pytest.raises(errors.KafkaError, match=r"t\[1\]"):
        find_extents(admin, NAMES, time.monotonic() + timeout)
    assert len(admin.asked) == 1
