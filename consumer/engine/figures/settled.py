"""What is counted of settled records: how old and how complete events were, and why records were rejected.

Theory of operation. `steps` reads times, kinds and sections off a block before its rows settle, because a block drops
its columns with its last record, and hands them over here. The counts are capped (`counters`), the lists are short.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from consumer.engine.figures.counters import MAX_LETTERS, Counters, Samples, StoredLetter
from consumer.engine.figures.delivered import Coverage, Freshness
from consumer.engine.figures.value import DeliveredValue
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Instant, Problem, Warned
from consumer.engine.reading import Kind

_MAX_PROBLEMS: Final = 10


class SettledFigures:
    """Counts what became of records. `sections`: the names of the mapping's sections, by number."""

    def __init__(self, counters: Counters, sections: Sequence[str]) -> None:
        self._counters = counters
        self._sections = sections
        self.freshness, self.coverage, self.samples = Freshness(), Coverage(), Samples()
        self.value = DeliveredValue()
        # The first records that could not be delivered.
        self.problems: list[Problem] = []
        # Newest first.
        self.latest_letters: deque[StoredLetter] = deque(maxlen=MAX_LETTERS)

    def warned(self, warnings: Iterable[Sequence[Warned]]) -> None:
        """Count what events lack."""
        for of_event in warnings:
            for warning in of_event:
                self._counters.convert_warnings[warning.code, warning.field] += 1
                self.samples.warnings[warning.code, warning.field] = warning.message

    def delivered(
        self,
        times: Iterable[int],
        kinds: Mapping[tuple[Kind, int], int],
        values: Mapping[tuple[str, str], tuple[int, int]],
        now: Instant,
    ) -> int:
        """Count delivered events: when they happened (unix seconds), how many are of each kind and section, and what
        they are worth (`value`). Return how many happened more than an hour ago."""
        older = self.freshness.add(times, now)
        self.value.add(values, now.monotonic)
        covered: Counter[Kind] = Counter()
        for (kind, section), count in kinds.items():
            self._counters.delivered_by_name[kind.name] += count
            named = f"{kind.name} ({self._sections[section]})" if section else kind.name
            covered[kind._replace(name=named)] += count
        self.coverage.add(covered.items(), now.monotonic)
        return older

    def late(self, events: int, now: float) -> None:
        """Count web and app events that were delivered late at `now` (monotonic seconds)."""
        self._counters.late_events += events
        self.freshness.add_late(events, now)

    def rejected(self, problem: Problem) -> None:
        """Note a record that cannot be delivered."""
        self.samples.rejections[problem.stage.value, problem.code] = problem.message
        if len(self.problems) < _MAX_PROBLEMS:
            self.problems.append(problem)

    def dead_lettered(self, letter: DeadLetter, section: int) -> None:
        """Count a dead letter that the broker has stored."""
        self._counters.rejections[letter.rejection.stage.value, letter.rejection.code] += 1
        place = (letter.topic, letter.partition, letter.record.offset)
        stored = StoredLetter(letter.at_ms / 1000, *place, *letter.rejection, self._sections[section])
        self.latest_letters.appendleft(stored)
