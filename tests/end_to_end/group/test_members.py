"""The message of a failed rebalance test has the members' logs, so that a rare failure can be understood from
one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.group.members import KIP_848, Members
from tests.support.kafka.harness import Kafka


@pytest.mark.kafka
@pytest.mark.real_kafka
def test_a_failure_says_what_each_member_logged_last(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """The message has each member's last log lines, also those of a member that has ended; afterwards no member
    is left."""
    group = Members(kafka, api, tmp_path, KIP_848, session=5.0)
    one, other = group.join(2)
    one.until_logged("starting")
    one.kill()
    other.until_logged("starting")
    failure = AssertionError("as it were")
    group.__exit__(AssertionError, failure, None)
    notes = failure.__notes__
    assert [note.partition("\n")[0] for note in notes] == ["member-0 said last:", "member-1 said last:"]
    assert all('"starting"' in note for note in notes)
    assert one.ended
    assert other.ended
