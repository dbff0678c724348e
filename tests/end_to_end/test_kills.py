"""SIGKILL at random moments, then the same state again (lessons.md, "Crash points"): nothing lost, little twice."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from pathlib import Path

import pytest

from consumer.adapters.key_store import open_key_store
from consumer.core.model import Disposition
from consumer.sandbox.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import (
    committed_offsets,
    dead_letters,
    generated,
    new_group,
    new_topic,
    value_of,
    write_generated,
)
from tests.kafka.harness import Kafka

KILLS = 4
BATCH, CONCURRENCY = 20, 4


@pytest.mark.real_kafka  # the embedded broker knows no static membership
def test_killed_again_and_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Four kills under load: all events accepted under their own ids, at most what was in flight accepted twice."""
    dice = random.Random(20)
    topic, group = new_topic(kafka), new_group()
    generator, events = generated(2500, seed=2, duplicates=0.05, invalid=0.02)
    write_generated(kafka, topic, events)
    expected = {
        one.event["event_id"] for one in events if one.event and one.expected is Disposition.DELIVERED
    }
    api.set_faults(slow=Chance(share=1.0), slow_seconds=0.15)
    env = run_environment(
        tmp_path, kafka, topic, group, api.url,
        PINSTREAM_BATCH_EVENTS=str(BATCH), PINSTREAM_CONCURRENCY=str(CONCURRENCY),
        # Static membership: the next process takes the partitions over at once, whatever the dead one held.
        KAFKA_GROUP_INSTANCE_ID=f"{group}-1",
    )  # fmt: skip
    for _ in range(KILLS):
        with Process(tmp_path, "run", env=env) as process:
            before = api.calls
            process.until(partial(called_since, api, before), "a call of its own")
            time.sleep(dice.uniform(0.0, 0.7))
            process.kill()
        assert keys_in(tmp_path / "state" / "keys") <= len(expected)
        assert sum(committed_offsets(kafka, group, topic)) < len(events), "killed too late to show anything"

    with Process(tmp_path, "run", env=env) as last:
        last.until(lambda: sum(committed_offsets(kafka, group, topic)) == len(events), "the rest")
        assert last.stop()[0] == 0
    accepted = api.accepted()
    assert set(accepted) == expected
    assert api.counts().value_sum == generator.value_sum
    assert accepted.total() - len(expected) <= KILLS * CONCURRENCY * BATCH
    assert keys_in(tmp_path / "state" / "keys") == len(expected)
    broken = {value_of(one) for one in events if one.defect}
    # Killed between the broker's word and the commit, a dead letter is written once more; never once less.
    assert broken == {message.value() for message, _ in dead_letters(kafka, topic)}


def called_since(api: Api, before: int) -> bool:
    """Whether there was another call."""
    return api.calls > before


def keys_in(folder: Path) -> int:
    """How many keys the store that a dead process left behind holds: it opens, and it can be read."""

    async def read() -> int:
        store = open_key_store(f"lmdb:{folder}", window=48 * 3600.0, max_bytes=2**30)
        try:
            await store.look_up([b"\0" * 16], time.time())
            return store.statistics().keys
        finally:
            await store.close()

    return asyncio.run(read())


@pytest.mark.parametrize("when", ["starting", "joining"])
def test_told_to_stop_while_it_starts(kafka: Kafka, api: Api, tmp_path: Path, when: str) -> None:
    """SIGTERM before the first record, or before the group: it ends by itself, soon, with exit code 0."""
    env = run_environment(tmp_path, kafka, new_topic(kafka), new_group(), api.url)
    with Process(tmp_path, "run", env=env) as process:
        if when == "joining":
            process.until_logged("starting")
        else:
            process.until(lambda: (tmp_path / "state" / "keys").exists(), "its key store")
        code, seconds = process.stop()
    assert code in ((0,) if when == "joining" else (0, -15))
    assert seconds < 15
    assert api.calls == 0
