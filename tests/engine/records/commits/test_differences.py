"""Members of a group that send by other settings: what their commits say is compared, and told by name."""

from __future__ import annotations

import pytest

from consumer.engine.model import TopicPartition, settings_digests
from consumer.engine.records import offset_map
from tests.engine.building import TOPIC, Core, event, filtered
from tests.engine.records.commits.test_commits import DESTINATION, OURS, TOPIC_ID

THEIRS = settings_digests("another mapping", "schemas", "shop.events:clean")


def committed_by(sender: str | None) -> str:
    """Return the metadata of a commit of 5 by a member with this fingerprint."""
    return offset_map.write_map(TopicPartition(TOPIC, 0), 5, [], None, topic_id=TOPIC_ID, fingerprint=sender)


def test_the_fingerprint_goes_with_each_commit() -> None:
    """A commit says by which mapping, schemas and function its member sends, beside the map."""
    core = Core(destination=DESTINATION, fingerprint=OURS)
    core.assign(0, start=5, topic_id=TOPIC_ID)
    core.fetch(filtered(), event("open"), filtered())
    core.advance(1.0)
    [position] = core.commit()
    said = offset_map.read_map(position)
    assert said[:3] == (TOPIC_ID, DESTINATION, OURS)
    assert said.settled is not None
    assert (said.settled.settled(position.next_offset), said.settled.settled(position.next_offset + 1)) == (
        False,
        True,
    )


def test_a_member_that_sent_by_other_settings_is_reported_by_what_differs() -> None:
    """What the owner before us sent by is compared, part by part; a difference is reported once in ten minutes, and
    shown for ten minutes after it was seen last."""
    core = Core(fingerprint=OURS)
    core.assign(0, start=5, topic_id=TOPIC_ID, metadata=committed_by(THEIRS))
    [report] = core.reports("members_differ")
    assert (report.level, report.fields) == ("warning", {"differ": "function, mapping", "seen_in": "commits"})
    assert core.statistics().members_differ == ("mapping", "function")
    core.now += 300.0
    core.assign(0, epoch=9, start=5, topic_id=TOPIC_ID, metadata=committed_by(THEIRS))
    assert len(core.reports("members_differ")) == 1
    core.now += 599.0
    core.tick()
    assert core.statistics().members_differ == ("mapping", "function")
    core.now += 1.0
    core.tick()
    assert core.statistics().members_differ == ()


@pytest.mark.parametrize("sender", [OURS, None])
def test_the_same_or_unknown_settings_are_not_reported(sender: str | None) -> None:
    """A member with the same settings, and an older version that says nothing of them, give no warning."""
    core = Core(fingerprint=OURS)
    core.assign(0, start=5, topic_id=TOPIC_ID, metadata=committed_by(sender))
    assert not core.reports("members_differ")
    assert core.statistics().members_differ == ()
