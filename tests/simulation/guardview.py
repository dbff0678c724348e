"""What a process's dead-letter guard ought to know: all that was read, in the order of offsets, and what became of it.

Theory of operation. Per partition the records that the process has read, each once, where it was read last. It follows
from what was fetched and from how far the core says it has read. Which order the partitions of a topic are read in is
the core's to decide, so a sample is any run of neighbours of each partition that make up the sample's size together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate, product

from consumer.engine.model import Policy, TopicPartition
from consumer.engine.records.ledger import Ledger
from tests.simulation.records import Spec
from tests.simulation.truth import Violation


class GuardView:
    """The guard of one process."""

    def __init__(self, policy: Policy) -> None:
        self._share = policy.dead_letter_share
        self._maximum = policy.dead_letter_sample
        self._kept = self._maximum + int(policy.max_open_events / max(0.1, self._share))
        self._fetched: dict[TopicPartition, list[Spec]] = {}
        """Records of the present assignments that are not known to be read."""
        self._read: dict[TopicPartition, list[Spec]] = {}
        self._letters: set[Spec] = set()
        """Dead letters that are written or being written."""

    def fetched(self, tp: TopicPartition, specs: Sequence[Spec]) -> None:
        """These records were fetched; earlier ones from their first offset on that were not read come again
        with them."""
        waiting = self._fetched.setdefault(tp, [])
        waiting[:] = [one for one in waiting if one.offset < specs[0].offset] + list(specs)

    def assigned(self, tp: TopicPartition) -> None:
        """What was not read of the earlier assignment will not be read."""
        self._fetched.pop(tp, None)

    def settled_down(self, ledger: Ledger) -> None:
        """An input was handled: find out which records have been read."""
        for tp, waiting in self._fetched.items():
            state = ledger.get(tp)
            new = [one for one in waiting if state is not None and one.offset <= state.last_seen]
            if not new:
                continue
            del waiting[: len(new)]
            read = self._read.setdefault(tp, [])
            again = read[bisect_left(read, new[0].offset, key=lambda one: one.offset) :]
            self._letters.difference_update(again)
            read[len(read) - len(again) :] = new

    def check_reason(self, topic: str) -> None:
        """The guard has tripped: among some neighbouring records too many must be bad."""
        best = {0: 0}
        """For each number of records, the most of them that can be bad."""
        for tp, read in self._read.items():
            bad = [one.kind.stage is not None for one in read if not _is_filtered(one)]
            runs = _worst_runs(bad if tp.topic == topic else [], self._maximum)
            longer: dict[int, int] = {}
            for (count, worst), (length, more) in product(best.items(), enumerate(runs)):
                longer[count + length] = max(longer.get(count + length, 0), worst + more)
            best = {count: worst for count, worst in longer.items() if count <= self._maximum}
        enough = sum(len(read) for tp, read in self._read.items() if tp.topic == topic) >= self._maximum
        if not enough or max(best.values()) / self._maximum <= self._share:
            raise Violation(
                "the guard has its reason", f"of {self._maximum} neighbours of {topic}, {best} are bad"
            )

    def letters(self, specs: Iterable[Spec]) -> None:
        """These are written as dead letters. If too many neighbouring records are among them, the guard should
        have tripped."""
        self._letters.update(specs)
        if len(self._read) != 1 or self._share >= 1:
            return
        [read] = self._read.values()
        # What is filtered has no place, unless it was passed over, or until its schema was known.
        enough = sum(not _is_filtered(one) for one in read) >= self._maximum
        runs = _worst_runs([one in self._letters for one in read[-self._kept :]], self._maximum)
        if enough and runs[-1] / self._maximum > self._share:
            raise Violation(
                "the guard stops in time", f"of {self._maximum} neighbours {runs[-1]} are dead letters"
            )


def _is_filtered(spec: Spec) -> bool:
    return spec.kind.passes_silently


def _worst_runs(bad: Sequence[bool], maximum: int) -> list[int]:
    """For each length up to `maximum`, the most bad records in a run of that length."""
    sums = [0, *accumulate(bad)]
    lengths = range(min(maximum, len(bad)) + 1)
    return [max(sums[end] - sums[end - length] for end in range(length, len(sums))) for length in lengths]
