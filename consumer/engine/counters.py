"""What the core counts, and single cases of it.

Theory of operation. `Counters` only ever grow; each family is a dict over a closed (or capped) set of names, so that
nothing a shop or the API sends can grow it without bound. `Samples` keeps a bounded number of cases of each.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, NamedTuple

from consumer.engine.coverage import OTHER
from consumer.engine.figures import Figure, Histogram
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Problem, Rejection, Stage, TopicPartition, Warned

_MOST_NAMES = 64
PROBLEMS_MOST = 10
LETTERS_MOST = 20


CALL_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, math.inf)
"""Seconds."""
OUTCOMES = ("verdict", "refused", "throttled", "no_verdict", "no_answer")
"""How calls end: with an outcome for the events, a refusal of us, a 429, an answer that says nothing, or none."""


class CallsEnded(NamedTuple):
    """Calls that ended in one way."""

    calls: Annotated[
        int,
        Figure(
            "count",
            "Calls that came back in this way.",
            status_note="With a `verdict` on the events, `refused` (the token or the account), `throttled`, with an "
            "answer that says nothing (`no_verdict`), or with `no_answer`.",
        ),
    ]
    seconds: Annotated[float, Figure("seconds", "How long they took together.")]


@dataclass
class Counters:
    """Everything counted, by name. `bump` on a capped family counts further names as ``other``."""

    rejections: Annotated[
        Counter[tuple[str, str]],
        Figure(
            "rejections.{stage}.{code}", "Dead letters stored, by reason.", "pinstream_rejected_records_total"
        ),
    ] = field(default_factory=Counter)
    filtered: Annotated[
        Counter[str],
        Figure("filtered.{rule}", "Records filtered, by rule.", "pinstream_filtered_records_total"),
    ] = field(default_factory=Counter)
    delivered_by_name: Annotated[
        Counter[str],
        Figure(
            "delivered_by_event_name.{event name}",
            "Events delivered, by event name.",
            "pinstream_delivered_events_total",
        ),
    ] = field(default_factory=Counter)
    convert_warnings: Annotated[
        Counter[tuple[str, str]],
        Figure(
            "convert_warnings.{code}.{field}",
            "Fields left out or malformed, by code and conversion field.",
            "pinstream_convert_warnings_total",
            status_note="See [conversion](conversion.md).",
        ),
    ] = field(default_factory=Counter)
    """Both names from closed sets, as each warning is a constant of the converter."""
    api_warnings: Annotated[
        Counter[str],
        Figure(
            "api_warnings.{kind}",
            "Warnings of the platform, without the values in them.",
            "pinstream_api_warnings_total",
        ),
    ] = field(default_factory=Counter)
    api_errors: Annotated[
        Counter[str],
        Figure(
            "api_errors.{kind}",
            "Error messages of the platform about events, by kind.",
            "pinstream_api_errors_total",
        ),
    ] = field(default_factory=Counter)
    answers: Annotated[
        Counter[str],
        Figure(
            "answers.{status}",
            "Answers of the platform by HTTP status, or why none came.",
            "pinstream_answers_total",
        ),
    ] = field(default_factory=Counter)
    no_verdicts: Annotated[
        Counter[str],
        Figure(
            "no_verdicts.{reason}",
            "Attempts that brought no verdict, by reason.",
            "pinstream_no_verdicts_total",
        ),
    ] = field(default_factory=Counter)
    failures: Annotated[
        Counter[str],
        Figure(
            "failures.{kind}",
            "Failures of our own, tried again: key store, dead letters, commits, registry.",
            "pinstream_failures_total",
        ),
    ] = field(default_factory=Counter)
    topics_made_anew: Annotated[
        Counter[str],
        Figure(
            "topics_made_anew.{topic}",
            "Times that a topic was found deleted and made anew, and begun at its beginning.",
            "pinstream_topics_made_anew_total",
            status_note="See the [runbook](runbook.md#a-topic-was-made-anew).",
        ),
    ] = field(default_factory=Counter)
    calls: Annotated[int, Figure("calls", "Calls made to the Conversions API.", "pinstream_calls_total")] = 0
    events_sent: Annotated[
        int, Figure("events_sent", "Events sent, those sent again included.", "pinstream_sent_events_total")
    ] = 0
    bytes_sent: Annotated[
        int, Figure("bytes_sent", "Bytes of request bodies sent.", "pinstream_sent_bytes_total")
    ] = 0
    bisected: Annotated[
        int,
        Figure(
            "batches_bisected",
            "Batches bisected to find a refused event.",
            "pinstream_batches_bisected_total",
        ),
    ] = 0
    retried_batches: Annotated[
        int,
        Figure("batches_retried", "Batches put back to be sent again.", "pinstream_batches_retried_total"),
    ] = 0
    unclear_repeats: Annotated[
        int,
        Figure(
            "unclear_repeats",
            "Events sent again without a known outcome, offline or over an hour old by then: may be counted twice.",
            "pinstream_unclear_repeats_total",
            status_note="An earlier call with them may have arrived, and the platform does not deduplicate those. Each "
            "event is counted once, however often it was sent.",
        ),
    ] = 0
    unclear_offline: Annotated[
        int,
        Figure(
            "offline_events_unclear",
            "Unclear repeats that happened offline.",
            "pinstream_offline_events_unclear_total",
        ),
    ] = 0
    processed_with_error: Annotated[
        int,
        Figure(
            "processed_with_error",
            "Events processed, yet with an error message.",
            "pinstream_processed_with_error_total",
        ),
    ] = 0
    """Delivered, and worth an alert."""
    followers: Annotated[
        int,
        Figure(
            "followers", "Events that waited for an open one with the same key.", "pinstream_followers_total"
        ),
    ] = 0
    in_two_steps: Annotated[
        int,
        Figure(
            "in_two_steps",
            "Records that were not read on the fast path: of a schema that it cannot take, or undecodable, or unusual.",
            "pinstream_in_two_steps_records_total",
            status_note="Counted each time they were read. Nearly as many as `ledger.read`: the fast path does not "
            "take the writer's schema, and an event costs about six times as much; or `process.fast_path` is `off`.",
        ),
    ] = 0
    """Read the slow way (`consumer.engine.reading.Reading`)."""
    removed_unread: Annotated[
        int,
        Figure(
            "removed_unread",
            "Records, at most, that were removed from their log before they were read: by retention, or by hand.",
            "pinstream_removed_unread_records_total",
        ),
    ] = 0
    positions_went_back: Annotated[
        int,
        Figure(
            "positions_went_back",
            "Times that a position went back: a log was cut, or a topic made anew.",
            "pinstream_positions_went_back_total",
        ),
    ] = 0
    keys_forgotten_early: Annotated[
        int,
        Figure(
            "keys_forgotten_early",
            "Keys of delivered events that the key store forgot before their window was over, since it was full.",
            "pinstream_keys_forgotten_early_total",
            status_note="With `--workers` the sum of what each dropped.",
        ),
    ] = 0
    delivered_after_release: Annotated[
        int,
        Figure(
            "delivered_after_release",
            "Events delivered for a partition released meanwhile; its next owner finds them delivered, or sends again.",
            "pinstream_delivered_after_release_total",
        ),
    ] = 0
    call_buckets: Annotated[Counter[tuple[str, float]], Figure()] = field(default_factory=Counter)
    """Calls that ended, by outcome and by the bound of seconds that theirs are within (`CALL_BOUNDS`)."""
    call_milliseconds: Annotated[Counter[str], Figure()] = field(default_factory=Counter)
    """Their times together, by outcome."""

    @property
    def calls_ended(self) -> Annotated[Mapping[str, CallsEnded], Figure("calls_ended.{outcome}")]:
        """How many calls ended in which way, and how long they took together."""
        counts = dict.fromkeys(OUTCOMES, 0)
        for (outcome, _), count in self.call_buckets.items():
            counts[outcome] += count
        return {
            outcome: CallsEnded(count, self.call_milliseconds[outcome] / 1000)
            for outcome, count in counts.items()
        }

    @property
    def call_seconds(
        self,
    ) -> Annotated[
        Mapping[str, Histogram],
        Figure(
            sentence="Time from a call to its end, by outcome.",
            metric="pinstream_call_seconds",
            labels=("outcome",),
        ),
    ]:
        """How long calls took, by the way they ended."""
        return {
            outcome: Histogram(
                CALL_BOUNDS,
                [*accumulate(self.call_buckets[outcome, bound] for bound in CALL_BOUNDS)],
                self.call_milliseconds[outcome] / 1000,
            )
            for outcome in OUTCOMES
        }

    def copy(self) -> Counters:
        """The counts of now, which go on changing here and not there."""
        taken = Counters()
        for name, value in vars(self).items():
            setattr(taken, name, value.copy() if isinstance(value, Counter) else value)
        return taken

    def call_ended(self, outcome: str, seconds: float) -> None:
        """A call came back, one way or another."""
        self.call_buckets[outcome, CALL_BOUNDS[bisect_left(CALL_BOUNDS, seconds)]] += 1
        self.call_milliseconds[outcome] += round(seconds * 1000)

    @staticmethod
    def bump(family: Counter[str], name: str, by: int = 1) -> None:
        """Count `name`, or ``other`` once the family has its most names."""
        family[name if name in family or len(family) < _MOST_NAMES else OTHER] += by


class StoredLetter(NamedTuple):
    """A dead letter that is stored."""

    at: Annotated[
        float,
        Figure(
            "at",
            "When the record was given up, seconds since 1970.",
            status_note="The newest is first, there are at most 20, all of them stored.",
        ),
    ]
    topic: Annotated[str, Figure("topic", "The topic that the record was read from.")]
    partition: Annotated[int, Figure("partition", "Its partition there.")]
    offset: Annotated[int, Figure("offset", "Its offset there.")]
    stage: Annotated[
        Stage, Figure("stage", "The stage that gave it up.", status_note="`decode`, `convert` or `deliver`.")
    ]
    code: Annotated[str, Figure("code", "Why.", status_note="See [conversion](conversion.md).")]
    message: Annotated[str, Figure("message", "The same in words, without personal data.")]


class SamplesSnapshot(NamedTuple):
    """The latest message of each kind."""

    rejections: Annotated[
        Mapping[tuple[str, str], str],
        Figure(
            "rejections.{stage}.{code}", "The latest message of this kind, its dead letter stored or not."
        ),
    ]
    warnings: Annotated[
        Mapping[tuple[str, str], str], Figure("convert_warnings.{code}.{field}", "What this warning says.")
    ]


NO_SAMPLES = SamplesSnapshot({}, {})


class Samples:
    """Single cases of what is otherwise only counted: the first problems, the latest dead letters, a message of each
    kind. Bounded, as codes are a closed set."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        """The first records that could not be delivered."""
        self._letters: deque[StoredLetter] = deque(maxlen=LETTERS_MOST)
        self._rejections: dict[tuple[str, str], str] = {}
        self._warnings: dict[tuple[str, str], str] = {}

    def rejected(self, tp: TopicPartition, offset: int, rejection: Rejection) -> None:
        """A record cannot be delivered."""
        self._rejections[rejection.stage.value, rejection.code] = rejection.message
        if len(self.problems) < PROBLEMS_MOST:
            self.problems.append(Problem(tp.topic, tp.partition, offset, *rejection))

    def warned(self, warning: Warned) -> None:
        """A deliverable event lacks something."""
        self._warnings[warning.code, warning.field] = warning.message

    def stored(self, letter: DeadLetter) -> None:
        """A dead letter is stored."""
        place = (letter.topic, letter.partition, letter.record.offset)
        self._letters.append(StoredLetter(letter.at_ms / 1000, *place, *letter.rejection))

    def letters(self) -> tuple[StoredLetter, ...]:
        """The latest dead letters, newest first."""
        return tuple(reversed(self._letters))

    def snapshot(self) -> SamplesSnapshot:
        """The messages of now."""
        return SamplesSnapshot(dict(self._rejections), dict(self._warnings))


def by_name(counts: Mapping[str, int]) -> dict[str, int]:
    """A counter family in a stable order."""
    return dict(sorted(counts.items()))
