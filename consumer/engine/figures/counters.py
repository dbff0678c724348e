"""What the engine counts, and samples of it; and what a key store counts.

Theory of operation. `Counters` only grow. The names of a family are a closed or capped set, so that nothing that a shop
or the API sends can make it grow without bound. `Samples` are messages of what is counted. A snapshot has copies of
both (`definitions.copied`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from consumer.engine.figures.definitions import Histogram, counts, derived, figure, number, snapshot
from consumer.engine.model import Stage

# Dead letters that a snapshot names.
MAX_LETTERS = 20
# Upper bounds of the histogram of calls, in seconds.
CALL_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, math.inf)
# How a call ends: with a verdict, a refused token or account, a 429, an answer without a verdict, or no answer.
CALL_OUTCOMES = ("verdict", "refused", "throttled", "no_verdict", "no_answer")
# Names of a family that is not a closed set: each is a series of Prometheus, and a row in the windows of `delivered`.
MAX_NAMES = 64
OTHER = "other"


def counted_as(name: str, names: Collection[str]) -> str:
    """Return the name under which `name` is counted beside these `names`: ``other`` once they are `MAX_NAMES`."""
    # A shop, or the API, may make up names without end.
    return name if name in names or len(names) < MAX_NAMES else OTHER


@snapshot
class CallsEnded:
    """Calls that ended in one way."""

    calls: int = figure(
        "Calls that ended in this way.",
        path="count",
        status_note="`verdict`, `refused` (token or account), `throttled`, `no_verdict` or `no_answer`.",
    )
    seconds: float = figure("Their total time.")


@dataclass
class Counters:
    """Everything counted, by name. `bump` on a capped family counts further names as ``other``."""

    rejections: Counter[tuple[str, str]] = counts(
        "Dead letters stored, by reason.", "pinstream_rejected_records_total", keys=("stage", "code")
    )
    filtered: Counter[str] = counts(
        "Records filtered, by rule.", "pinstream_filtered_records_total", keys=("rule",)
    )
    # Names from the mapping file, which has 250 sections at most.
    by_section: Counter[tuple[str, str]] = counts(
        "Records settled, by section of the mapping and disposition.",
        "pinstream_section_records_total",
        keys=("section", "disposition"),
        status_note="Only records with a [section](sections.md).",
    )
    delivered_by_name: Counter[str] = counts(
        "Events delivered, by event name.",
        "pinstream_delivered_events_total",
        path="delivered_by_event_name",
        keys=("event name",),
    )
    # Both names from closed sets, as each warning is a constant of the converter.
    convert_warnings: Counter[tuple[str, str]] = counts(
        "Fields omitted or malformed, by code and conversion field.",
        "pinstream_convert_warnings_total",
        keys=("code", "field"),
        status_note="See [conversion](conversion.md).",
    )
    api_warnings: Counter[str] = counts(
        "Warnings of the platform, without values.",
        "pinstream_api_warnings_total",
        keys=("kind",),
    )
    api_errors: Counter[str] = counts(
        "Error messages of the platform about events, by kind.", "pinstream_api_errors_total", keys=("kind",)
    )
    answers: Counter[str] = counts(
        "Answers of the platform by HTTP status, or why none came.",
        "pinstream_answers_total",
        keys=("status",),
    )
    no_verdicts: Counter[str] = counts(
        "Attempts that brought no verdict, by reason.", "pinstream_no_verdicts_total", keys=("reason",)
    )
    failures: Counter[str] = counts(
        "Failures of our own, tried again: key store, dead letters, receipts, commits, registry.",
        "pinstream_failures_total",
        keys=("kind",),
    )
    topics_made_anew: Counter[str] = counts(
        "Times that a topic was found recreated; it is then read from its beginning.",
        "pinstream_topics_made_anew_total",
        keys=("topic",),
        status_note="[Runbook](runbook.md#a-topic-was-recreated).",
    )
    # Called, answered, processed: three figures, since an attempt may get no answer.
    calls: int = number("Calls begun to the Conversions API, answered or not.", "pinstream_calls_total")
    events_sent: int = number(
        "Events in the calls begun: each counts in every attempt.",
        "pinstream_sent_events_total",
    )
    bytes_sent: int = number("Bytes of the bodies of the calls begun.", "pinstream_sent_bytes_total")
    calls_answered: int = number(
        "Calls with an HTTP answer, whatever it said.", "pinstream_answered_calls_total"
    )
    events_answered: int = number("Events in these calls.", "pinstream_answered_events_total")
    bytes_answered: int = number("Bytes of the bodies of these calls.", "pinstream_answered_bytes_total")
    events_processed: int = number(
        "Events that the platform said it processed.",
        "pinstream_processed_events_total",
        status_note="They are delivered once their keys are stored.",
    )
    bisected: int = number(
        "Batches bisected to find a refused event.",
        "pinstream_batches_bisected_total",
        path="batches_bisected",
    )
    retried_batches: int = number(
        "Batches put back to be sent again.", "pinstream_batches_retried_total", path="batches_retried"
    )
    unclear_repeats: int = number(
        "Events sent again without a known outcome, offline or over an hour old by then: may be counted twice.",
        "pinstream_unclear_repeats_total",
        status_note="Each is counted once.",
    )
    unclear_offline: int = number(
        "Unclear repeats that happened offline.",
        "pinstream_offline_events_unclear_total",
        path="offline_events_unclear",
    )
    late_events: int = number(
        "Web and app events delivered over an hour after they happened: may count twice, beside the browser tag's.",
        "pinstream_late_events_total",
        status_note="Inferred: see [platform](platform.md#late-events).",
    )
    # Delivered, and worth an alert.
    processed_with_error: int = number(
        "Events processed, yet with an error message.", "pinstream_processed_with_error_total"
    )
    followers: int = number(
        "Events that waited for an open one with the same key.", "pinstream_followers_total"
    )
    # Read the slow way (`consumer.engine.reading.Reading`).
    in_two_steps: int = number(
        "Records not read on the fast path: of a schema that it cannot take, undecodable, or unusual.",
        "pinstream_in_two_steps_records_total",
        status_note="Nearly all of `ledger.read`: it does not take the schema, or `process.fast_path` is `off`.",
    )
    slow_transforms: int = number(
        "Records for which the user's function took more than a second.",
        "pinstream_slow_transforms_total",
    )
    removed_unread: int = number(
        "Records, at most, removed from their log before they were read, by retention or by hand.",
        "pinstream_removed_unread_records_total",
    )
    positions_went_back: int = number(
        "Times that a position went back: a log was cut, or a topic recreated.",
        "pinstream_positions_went_back_total",
    )
    taken_over: int = number(
        "Events delivered, or sent without an answer, that another member took over after our lease ended: each may "
        "have been sent twice.",
        "pinstream_taken_over_events_total",
    )
    delivered_after_release: int = number(
        "Events delivered after their partition was released; its next owner may send them again.",
        "pinstream_delivered_after_release_total",
    )
    # Calls that ended, by outcome and by the bound of seconds that theirs are within (`CALL_BOUNDS`).
    call_buckets: Counter[tuple[str, float]] = counts(path="")
    # Total time of these calls, by outcome.
    call_milliseconds: Counter[str] = counts(path="")

    @derived("calls_ended", keys=("outcome",))
    def calls_ended(self) -> Mapping[str, CallsEnded]:
        """How many calls ended in each way, and their total time."""
        return {outcome: CallsEnded(one.counts[-1], one.total) for outcome, one in self.call_seconds.items()}

    @derived(metric="pinstream_call_seconds", labels=("outcome",))
    def call_seconds(self) -> Mapping[str, Histogram]:
        """Time from a call to its end, by outcome."""
        return {
            outcome: Histogram(
                CALL_BOUNDS,
                [*accumulate(self.call_buckets[outcome, bound] for bound in CALL_BOUNDS)],
                self.call_milliseconds[outcome] / 1000,
            )
            for outcome in CALL_OUTCOMES
        }

    def call_ended(self, outcome: str, seconds: float) -> None:
        """Count a call that ended."""
        # In plain counts, because copies and merges of workers can add only those.
        self.call_buckets[outcome, CALL_BOUNDS[bisect_left(CALL_BOUNDS, seconds)]] += 1
        # Whole milliseconds, because a `Counter` counts in whole numbers.
        self.call_milliseconds[outcome] += round(seconds * 1000)

    @staticmethod
    def bump(family: Counter[str], name: str, by: int = 1) -> None:
        """Count `name`, or ``other`` if the family is full."""
        family[counted_as(name, family)] += by


@snapshot
class StoredLetter:
    """A dead letter that is stored."""

    at: float = figure(
        "When, in seconds since 1970.",
        status_note="The newest is first, at most 20.",
    )
    topic: str = figure("The record's topic.")
    partition: int = figure()
    offset: int = figure()
    stage: Stage = figure("The stage that gave it up.", status_note="`decode`, `convert` or `deliver`.")
    code: str = figure("Why.", status_note="See [conversion](conversion.md).")
    message: str = figure("The same in words, without personal data.")
    section: str = figure("The record's section of the mapping; empty: none.", default="")


def _latest(by_worker: Sequence[Mapping[tuple[str, str], str]]) -> Mapping[tuple[str, str], str]:
    """The latest message of each kind."""
    return {kind: message for messages in by_worker for kind, message in messages.items()}


@dataclass
class Samples:
    """The latest message of each kind of what is otherwise only counted. Bounded, because codes are a closed set."""

    rejections: dict[tuple[str, str], str] = figure(
        "The latest message of this kind, its dead letter stored or not.",
        default_factory=dict,
        keys=("stage", "code"),
        merge=_latest,
    )
    warnings: dict[tuple[str, str], str] = figure(
        "What this warning says.",
        default_factory=dict,
        path="convert_warnings",
        keys=("code", "field"),
        merge=_latest,
    )


# Workers share one store: the largest size that one of them has seen is its size.
_seen_by_all = partial(figure, default=0, merge=partial(max, default=0))


@snapshot
class KeyStoreStatistics:
    """The figures of a key store."""

    keys: int = _seen_by_all("Delivered keys that are remembered.")
    """Including keys already out of the window; a key in two places counts twice."""
    bytes_used: int = _seen_by_all("What they take on disk.", path="bytes")
    """Or an upper bound of their memory; never above the store's limit."""
    buckets: int = _seen_by_all("Slices of time that they are kept in; 0: a shared store.")
    evicted: int = figure(path="", default=0)
    """Part of `evicted_early`: by this process."""
    evicted_by_server: int = _seen_by_all(path="")
    """Part of `evicted_early`: by a shared server, which tells all its members."""
    lost: int = figure(path="", default=0)
    """Keys that a shared store has lost: a replica took over that lacked them, or it was flushed or restored."""

    @derived(path="evicted_early")
    def evicted_early(self) -> int:
        """As `counts.keys_forgotten_early`."""
        # If not zero, the limit should be raised.
        return self.evicted + self.evicted_by_server
