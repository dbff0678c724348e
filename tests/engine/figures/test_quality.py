"""Where Pinterest sees less or more than was sent: told only of events that both speak of."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from consumer.engine.figures.delivered import PARAMETERS, CoverageSnapshot, Covered
from consumer.engine.figures.quality import (
    AccountQuality,
    ComponentCoverage,
    EventQuality,
    QualityScore,
    gaps,
)

DAY = 86_400.0
IDS = [one.id for one in PARAMETERS]


def sent(events: int = 1_000, **shares: int) -> CoverageSnapshot:
    """Coverage of checkout in the last day: percentages by parameter."""
    carried = tuple(events * shares.get(one, 0) // 100 for one in IDS)
    return CoverageSnapshot({}, {"checkout": Covered(events, carried)})


def score(seen: Mapping[str, float], platform: str = "WEB", source: str = "CONVERSIONS_API") -> QualityScore:
    """The score of checkout: percentages by component."""
    parts = {
        (component, "checkout"): ComponentCoverage(coverage, None, ()) for component, coverage in seen.items()
    }
    return QualityScore(platform, source, "FAIR", parts)


def quality(*scores: QualityScore, whole_for: float | None = DAY) -> EventQuality:
    """What Pinterest said of one account."""
    return EventQuality((AccountQuality("7", 1, None, scores),), whole_for)


FEW = {"hashed_email": 61.2, "order_value": 100.0}
SENT = sent(em=97, value=100)


def test_a_gap_is_a_sentence_with_its_probable_cause() -> None:
    """One component alone: its values. It has both percentages and both names."""
    assert gaps(quality(score(FEW)), SENT) == (
        "Of checkout, Pinterest found hashed_email in 61 %, and em was sent in 97 %. Probably it does not accept all "
        "digests: check how producers hash what they send hashed.",
    )


@pytest.mark.parametrize(
    ("seen", "ours", "cause"),
    [
        ({"advertiser_external_id": 50}, {"external_id": 100}, "digests"),
        ({"click_id_epik": 10}, {"click_id": 30}, "ids of its ad clicks"),
        ({"order_value": 80}, {"value": 100}, "zero"),
        ({"order_id": 80}, {"order_id": 100}, "placeholders"),
        ({"product_id": 80}, {"content_ids": 100}, "catalog"),
        ({"source_url": 80}, {"event_source_url": 100}, "domain"),
        ({"hashed_email": 60, "order_value": 70}, {"em": 97, "value": 100}, "with less in it"),
        ({"hashed_email": 97}, {"em": 40}, "with more in it"),
    ],
)
def test_each_kind_of_gap_has_its_cause(seen: dict[str, float], ours: dict[str, int], cause: str) -> None:
    """Several components at once are another sender's; more than was sent, too."""
    said = gaps(quality(score(seen)), sent(**ours))
    assert len(said) == len(seen)
    assert all(cause in one for one in said)


SILENT: dict[str, tuple[EventQuality, CoverageSnapshot]] = {
    "no gap": (quality(score({"hashed_email": 90})), SENT),
    "a part of the day": (quality(score(FEW), whole_for=DAY - 1), SENT),
    "another member": (quality(score(FEW), whole_for=0.0), SENT),
    "members are not counted": (quality(score(FEW), whole_for=None), SENT),
    "few events": (quality(score(FEW)), sent(99, em=97)),
    "nothing sent": (quality(score(FEW)), CoverageSnapshot({}, {})),
    "another sender's": (quality(score(FEW, source="TAG")), SENT),
    "on two platforms": (quality(score(FEW), score(FEW, "MOBILE_IOS")), SENT),
    "what we do not count": (quality(score({"hashed_maid": 5, "user_agent": 5, "unheard_of": 5})), SENT),
    "no answer": (EventQuality(), SENT),
    "two accounts": (EventQuality((AccountQuality("7", 1, None, (score(FEW),)),) * 2, DAY), SENT),
    "the last answer is old": (EventQuality((AccountQuality("7", 1, "away", (score(FEW),)),), DAY), SENT),
}


@pytest.mark.parametrize("why", SILENT)
def test_nothing_is_said_of_what_cannot_be_compared(why: str) -> None:
    """Both must speak of the same day, of all of the group, of one account and of one platform."""
    assert gaps(*SILENT[why]) == ()
