"""What Pinterest sees of the events: its event quality score, beside what this group delivered.

Theory of operation. With a token that may read, each process asks a few times a day. The answer is shown as it is:
scores by platform and source, the share of events in which Pinterest found each component, its issues.

A difference from our own coverage says something only if both speak of the same events. So they are compared only if
this process was all of its group for a day before it asked, has one ad account, and if Pinterest reports the event name
for one platform only (our own coverage is not divided by platform). Where Pinterest's day begins is not published, and
others may send events to the same account. So small differences are omitted, and a cause is only probable.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from consumer.engine.figures.definitions import figure, least, snapshot
from consumer.engine.figures.delivered import PARAMETERS, CoverageSnapshot, Covered, by_id

OUR_SOURCE: Final = "CONVERSIONS_API"
_DAY = 24 * 3600
# Events of a name from which on its coverage is compared, and points of a percentage that are a gap.
_LEAST_EVENTS, _GAP = 100, 10.0
# Pinterest's component -> our parameter.
_SAME: Final = {one.component: one.id for one in PARAMETERS if one.component}
_DIGESTS: Final = "it does not accept all digests: check how producers hash what they send hashed"
# Why Pinterest may see less of a component than was sent.
_CAUSES: Final[Mapping[str, str]] = {
    "hashed_email": _DIGESTS,
    "hashed_maid": _DIGESTS,
    "advertiser_external_id": _DIGESTS,
    "click_id_epik": "some values are not ids of its ad clicks: see what the mapping reads",
    "ip_address": "some addresses are of servers or proxies, not of customers: see what the mapping reads",
    "user_agent": "some are not of browsers: see what the mapping reads",
    "order_value": "some values are zero, or have a currency that it does not use",
    "order_id": "some values are placeholders: see what the mapping reads",
    "product_id": "some ids are not in the catalog: compare their spelling with the feed",
    "source_url": "some addresses are not of a domain that is claimed at Pinterest",
}


@snapshot
class ComponentCoverage:
    """One component of the event quality score, for one event name."""

    coverage: float = figure("Percentage of the events in which Pinterest found the component, 0 to 100.")
    overlap: float | None = figure(
        "What Pinterest calls overlap, which it does not explain: a percentage.",
        status_note="Only of `external_event_id`.",
    )
    issues: tuple[str, ...] = figure("What Pinterest says is wrong, in its words.", path="issues[]")


@snapshot
class QualityScore:
    """The event quality score of one platform and source."""

    platform: str = figure("Where events happened, as Pinterest names it.", is_label=True)
    source: str = figure(
        "How they reached Pinterest, as it names it.", status_note="Ours is `CONVERSIONS_API`.", is_label=True
    )
    score: str | None = figure("`GOOD`, `FAIR` or `NEEDS_IMPROVEMENT`.")
    components: Mapping[tuple[str, str], ComponentCoverage] = figure(keys=("component", "event name"))


@snapshot
class AccountQuality:
    """What Pinterest said of one ad account."""

    account: str = figure("The ad account.", is_label=True)
    at: int | None = figure("When Pinterest answered last, seconds since 1970.", status_note="null: never.")
    problem: str | None = figure("Why the last question has no answer, and what to do.")
    scores: tuple[QualityScore, ...] = figure(path="scores[]")


def _newest(lists: Sequence[Sequence[AccountQuality]]) -> tuple[AccountQuality, ...]:
    """Return the latest answer about each account: each worker asks for itself."""
    several = sorted(chain.from_iterable(lists), key=lambda one: (one.account, one.at or 0))
    return tuple({one.account: one for one in several}.values())


@snapshot
class EventQuality:
    """What Pinterest sees of the events of the last day."""

    accounts: tuple[AccountQuality, ...] = figure(path="accounts[]", default=(), merge=_newest)
    # For how many seconds this process, with its fellow workers, was all of its group when Pinterest answered; 0: it is
    # not now; None: not known.
    whole_for: float | None = figure(path="", default=None, merge=least)


def gaps(quality: EventQuality, coverage: CoverageSnapshot) -> tuple[str, ...]:
    """Return a sentence for each event name and component of which Pinterest sees much less or more than was sent.

    Without a day that both speak of, there is none.
    """
    if len(quality.accounts) != 1 or (quality.whole_for or 0) < _DAY:
        return ()
    [account] = quality.accounts
    if account.problem is not None:
        return ()
    ours = [one for one in account.scores if one.source == OUR_SOURCE]
    platforms = Counter(name for one in ours for name in {name for _, name in one.components})
    by_name: dict[str, dict[str, float]] = defaultdict(dict)
    for (component, name), seen in chain.from_iterable(one.components.items() for one in ours):
        if platforms[name] == 1:
            by_name[name][component] = seen.coverage
    return tuple(
        sentence
        for name, theirs in sorted(by_name.items())
        if name in coverage.day and coverage.day[name].events >= _LEAST_EVENTS
        for sentence in _gaps_of(name, theirs, coverage.day[name])
    )


def _gaps_of(name: str, theirs: Mapping[str, float], covered: Covered) -> Iterator[str]:
    shares = by_id(covered.shares)
    compared = {one: (theirs[one], 100 * shares[_SAME[one]]) for one in _CAUSES if one in theirs}
    fewer = [one for one, (seen, sent) in compared.items() if sent - seen >= _GAP]
    for component, (seen, sent) in compared.items():
        if abs(seen - sent) < _GAP:
            continue
        cause = _CAUSES[component]
        if seen > sent:
            cause = "another sender delivers this event to the account too, with more in it"
        elif len(fewer) > 1:  # what is wrong with one component's values does not touch the others
            cause = "another sender delivers this event to the account too, with less in it"
        yield (
            f"Of {name}, Pinterest found {component} in {seen:.0f} %, and {_SAME[component]} was sent in {sent:.0f} %. "
            f"Probably {cause}."
        )
