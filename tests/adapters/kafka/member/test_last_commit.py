"""The last commit of a revoked partition: a refusal that passes is retried, any other is not.

No later commit can replace it: the next owner would send again all records settled since the previous commit.
"""

from __future__ import annotations

import confluent_kafka
import pytest

from consumer.engine.model import Position
from tests.adapters.kafka.member.scripted_member import Bench, taken

PASSING = [
    confluent_kafka.KafkaError.ILLEGAL_GENERATION,
    confluent_kafka.KafkaError.REBALANCE_IN_PROGRESS,
    confluent_kafka.KafkaError.STALE_MEMBER_EPOCH,
    confluent_kafka.KafkaError.NOT_COORDINATOR,
    confluent_kafka.KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
]
FINAL = [confluent_kafka.KafkaError.UNKNOWN_MEMBER_ID]
COMMIT = ("commit", False, [(0, 8, 2)])


def a_member() -> Bench:
    """Return a member that holds partition 0 and has to commit offset 8 of it."""
    bench = Bench()
    bench.told.positions = [Position("t", 0, 8, 2)]
    bench.assign(0)
    return bench


@pytest.mark.parametrize("code", PASSING)
def test_a_last_commit_between_generations_is_repeated(code: int) -> None:
    """While a refusal passes, a revoked partition's commit is repeated before the unassignment, and no trouble
    reported."""
    bench = a_member()
    bench.consumer.commit_answers = [code, code]
    bench.fetch(taken(0))
    names = [call[0] for call in bench.consumer.calls]
    assert bench.calls("commit") == [COMMIT] * 3
    assert names[-1] == "incremental_unassign"
    assert bench.told.troubles == []


@pytest.mark.parametrize("code", PASSING)
def test_a_last_commit_is_repeated_before_leaving(code: int) -> None:
    """A commit that is refused at first is repeated before the member leaves the group."""
    bench = a_member()
    bench.consumer.commit_answers = [code]
    bench.close()
    assert bench.calls("commit") == [COMMIT] * 2
    assert bench.consumer.calls[-1] == ("close",)
    assert bench.told.troubles == []


@pytest.mark.parametrize("code", FINAL)
def test_a_refusal_that_does_not_pass_is_reported_at_once(code: int) -> None:
    """A refusal that does not pass is reported after one attempt: a member that was removed cannot commit."""
    bench = a_member()
    bench.consumer.commit_answers = [code] * 5
    bench.fetch(taken(0))
    assert bench.calls("commit") == [COMMIT]
    assert [told for told, _ in bench.told.troubles] == [confluent_kafka.KafkaError(code).name()]


def test_metadata_that_is_too_large_is_left_out() -> None:
    """If the metadata are too large the offsets are committed without, since no later commit can follow."""
    bench = a_member()
    bench.told.positions = [Position("t", 0, 8, 2, "a map")]
    bench.consumer.commit_answers = [confluent_kafka.KafkaError.OFFSET_METADATA_TOO_LARGE]
    bench.fetch(taken(0))
    assert bench.calls("commit") == [COMMIT, COMMIT]
    assert bench.told.troubles == []


def test_repeated_refusals_do_not_delay_a_stop_beyond_its_deadline() -> None:
    """Repeated refusals do not keep a process from ending in time, and the failure is reported."""
    bench = a_member()
    bench.consumer.commit_answers = [confluent_kafka.KafkaError.ILLEGAL_GENERATION] * 1000
    bench.close(0.3)
    assert 1 <= len(bench.calls("commit")) <= 7
    assert bench.consumer.calls[-1] == ("close",)
    assert [told for told, _ in bench.told.troubles] == ["ILLEGAL_GENERATION"]


def test_without_time_the_last_commit_is_tried_once() -> None:
    """Without time left the commit is tried once, so that the member can still leave."""
    bench = a_member()
    bench.consumer.commit_answers = [confluent_kafka.KafkaError.ILLEGAL_GENERATION]
    bench.close(0.0)
    assert bench.calls("commit") == [COMMIT]
