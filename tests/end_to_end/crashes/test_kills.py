"""SIGKILL at random moments, then a new process with the same state (docs/guarantees.md): nothing lost, little
sent twice."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.crashes.aftermath import Committed, Line, Remains, look_up
from tests.end_to_end.records import PARTITIONS
from tests.support.kafka.harness import Kafka
from tests.support.switches import switched

KILLS = 30
BLIND = 5
"""One of this many kills may come at any moment since the start; the others come when the process has begun to send."""
RECORDS = 4000
BATCH, CONCURRENCY = 10, 4
AT_RISK = CONCURRENCY * BATCH
"""The most events that one kill may cause to be sent again."""
SLOW = 0.15
"""Seconds before each answer, so that there is work left for the last process, and usually something in flight."""


@dataclass
class Books:
    """What the kills so far explain."""

    explained: dict[str, int] = field(default_factory=dict)
    """For each event id, how many kills left it accepted without a stored key; it may be sent again that often."""
    before: Remains = field(
        default_factory=partial(Remains, Counter(), frozenset(), 0, Counter(), [Committed()] * PARTITIONS)
    )
    """The state after the last kill; at first nothing."""

    def close(self, remains: Remains) -> None:
        """After the end of a process compare what it did with what there was to do."""
        before, self.before = self.before, remains
        more = remains.accepted - before.accepted
        assert set(more.values()) <= {1}, "sent twice by one process"
        again = more.keys() & before.accepted.keys()
        assert again <= before.limbo, "sent again although remembered"
        # What this process left in limbo: no more than it may have at risk, whatever others had left before it.
        assert len(remains.limbo & more.keys()) <= AT_RISK
        for one in remains.limbo:
            self.explained[one] = self.explained.get(one, 0) + 1
        # A process writes the dead letter of a record once, if the record was there to be read.
        letters = remains.letters - before.letters
        assert set(letters.values()) <= {1}
        assert not any(before.read_past(place) for place in letters)


@pytest.mark.slow("thirty kills")
@pytest.mark.timeout(400)
@pytest.mark.real_kafka  # the embedded broker knows no static membership
def test_killed_again_and_again(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Thirty kills under load: all accepted under their own ids, each again at most as often as it was at risk.

    Every other process reads records without the fast path: whoever comes next knows what was delivered before.
    """
    dice = random.Random(20)
    settings = {
        "PINSTREAM_BATCH_EVENTS": str(BATCH),
        "PINSTREAM_CONCURRENCY": str(CONCURRENCY),
        # Static membership: the next process takes the partitions over at once, whatever the dead one held.
        "KAFKA_GROUP_INSTANCE_ID": "the-one",
    }
    line = Line(kafka, api, tmp_path, RECORDS, seed=2, duplicates=0.05, invalid=0.02, settings=settings)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=SLOW)
    books, to_work = Books(), 1.0
    for number in range(1, KILLS + 1):
        blind = number % BLIND == 0
        line.env |= switched(commit_interval=0.2, compiled=number % 2 == 0)
        to_work = live_and_die(line, dice, to_work if blind else None) or to_work
        remains = line.remains()
        books.close(remains)
        assert len(line.passed_over(remains)) < RECORDS, "killed too late to show anything"

    api.set_faults()
    line.finish()
    end = line.check_all_is_there()
    books.close(end)
    repeats = end.accepted.total() - len(line.expected)
    assert all(times - 1 <= books.explained.get(one, 0) for one, times in end.accepted.items())
    assert repeats <= KILLS * AT_RISK
    assert repeats > KILLS, "hardly ever anything in flight: that shows nothing"


def live_and_die(line: Line, dice: random.Random, within: float | None) -> float | None:
    """Start a process and kill it `within` seconds, or (None) soon after its first call; return when that was."""
    begun = time.monotonic()
    with line.run() as process:
        if within is not None:
            time.sleep(dice.uniform(0.0, within))
            process.kill()
            return None
        process.until(partial(called_since, line.api, line.api.calls), "a call of its own")
        to_work = time.monotonic() - begun
        time.sleep(dice.uniform(0.0, 0.6))
        process.kill()
    return to_work


def called_since(api: Api, before: int) -> bool:
    """Whether there was another call."""
    return api.calls > before


def keys_in(folder: Path) -> int:
    """How many keys the store of a dead process holds: it opens and can be read."""
    return look_up(folder, ())[1]
