"""Selection: which events of a replay go on."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.commands.replay.options import (
    CHANNELS,
    EXPIRED,
    FIELDS,
    NOT_MATCHED,
    UNJUDGED,
    LeavingOut,
    Selecting,
    parse_where,
)
from consumer.conversion.decisions import REFUSALS
from consumer.engine.model import (
    CommerceEvent,
    ConversionEvent,
    Converted,
    Filtered,
    Later,
    Record,
    Rejection,
    SchemaRef,
    Stage,
    Untimely,
)
from consumer.engine.reading import NOT_UNICODE, Columns, Keys, NoEvent
from consumer.errors import UsageError
from tests.conversion.test_compiled import BOTH, comparable_row
from tests.conversion.test_convert import NOW, event_of
from tests.engine.building import read_by

NAMES = ("checkout", "page_visit", "signup")
SOURCES = ("web", "app_android", "app_ios", "offline")
ACCOUNTS = ("1", "2")


def converted(
    name: str = "checkout", source: str = "web", account: str = "1", event_id: str = "a"
) -> ConversionEvent:
    """Return a conversion event in which only the fields that conditions name matter."""
    return ConversionEvent(account, name, event_id, event_id, 0, source, {}, 0, ())


class Gives:
    """A converter that returns the results it was made with, one after the other."""

    def __init__(self, *given: Converted) -> None:
        self._given = iter(given)

    def convert(self, event: CommerceEvent, now: float) -> Converted:
        return next(self._given)


class GivesRows:
    """A reading whose records become the verdicts it was made with."""

    in_two_steps = 0

    def __init__(self, *given: NoEvent) -> None:
        self.given = given

    def read(
        self, records: Sequence[Record | None], now: float, columns: Columns, topic: str, partition: int
    ) -> None:
        for verdict in self.given:
            columns.add(verdict)


def select(where: Sequence[str], *given: Converted) -> list[Converted]:
    """Return the results of a converter under ``--where`` for `given`."""
    selecting = Selecting(Gives(*given), parse_where(where))
    return [selecting.convert({}, 0.0) for _ in given]


def filtered(given: NoEvent, *, where: bool) -> NoEvent:
    """Return what a reading with ``--where`` makes of the verdict `given`."""
    columns = Columns(Keys())
    LeavingOut(GivesRows(given), where).read([None], 0.0, columns, "shop", 0)
    [verdict] = columns.verdicts.values()
    return verdict


def test_without_a_condition_all_events_go_on() -> None:
    """Without a condition events, filtered ones and rejections stay as they are."""
    given = (converted(), Filtered("consent"), Rejection(Stage.CONVERT, "no_identity", "…"))
    assert select([], *given) == list(given)
    assert [filtered(one, where=False) for one in given[1:]] == list(given[1:])


@pytest.mark.parametrize("where", [False, True])
def test_what_is_too_old_is_expired_and_no_dead_letter(where: bool) -> None:
    """An event that is too old is filtered with the rejection's own code, under any condition."""
    assert EXPIRED in REFUSALS
    assert filtered(Rejection(Stage.CONVERT, EXPIRED, "…"), where=where) == Filtered(EXPIRED)


def test_a_reading_omits_what_is_too_old_and_nothing_else() -> None:
    """All others are kept in order."""
    both = BOTH["default"]
    values = [both.value(event_of(changed)) for changed in ({}, {"occurred_at": 0}, {"event_type": "x"}, {})]
    records = [Record(at, -1, None, value, ()) for at, value in enumerate([*values, None, b"?"])]
    plain = [comparable_row(one) for one in read_by(both.compiled, records, NOW)]
    left = [comparable_row(one) for one in read_by(LeavingOut(both.compiled, where=False), records, NOW)]
    assert [one for one in plain if isinstance(one, Rejection) and one.code == EXPIRED] == [plain[1]]
    assert left == [plain[0], Filtered(EXPIRED), *plain[2:]]


@pytest.mark.parametrize("stage", list(Stage))
def test_a_refused_event_cannot_be_judged(stage: Stage) -> None:
    """It is omitted under its own code; what was judged, filtered or waits stays, and what lies ahead waits first."""
    assert filtered(Rejection(stage, "unknown_currency", "…"), where=True) == Filtered(UNJUDGED)
    for one in (Filtered("consent"), SchemaRef("id", "5"), Later(7.0), NOT_UNICODE):
        assert filtered(one, where=True) == one
    ahead = Untimely.of(Rejection(stage, "future_event_time", "…"), 7.0, 9.0)
    found = filtered(ahead, where=True)
    assert isinstance(found, Untimely)
    assert (found.since, found.verdict) == (7.0, Filtered(UNJUDGED))


def test_channels_have_their_common_names_and_ids_may_hold_an_equals_sign() -> None:
    """An app is one of two sources; only the first equals sign separates field and value."""
    events = [converted(source=one, event_id="a=b!=c") for one in ("app_ios", "app_android", "web")]
    assert select(["event_id=a=b!=c", "channel=App"], *events) == [*events[:2], Filtered(NOT_MATCHED)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("checkout", "no condition"),
        ("event_name=", "no condition"),
        ("=checkout", "cannot be asked for"),
        ("name=checkout", "cannot be asked for"),
        ("channel=tv", "no channel"),
        ("ad_account=mine", "digits"),
    ],
)
def test_an_impossible_condition_is_refused_with_the_possible_ones(text: str, why: str) -> None:
    """A condition that is not possible is refused with one line that lists the possible fields or channels."""
    with pytest.raises(UsageError, match=why) as raised:
        parse_where([text])
    if "channel" in text:
        assert all(channel in str(raised.value) for channel in CHANNELS)
    elif "asked" in why:
        assert all(field in str(raised.value) for field in FIELDS)


CONDITIONS = st.one_of(
    st.tuples(st.just("event_name"), st.sampled_from(NAMES)),
    st.tuples(st.just("channel"), st.sampled_from(SOURCES)),
    st.tuples(st.just("ad_account"), st.sampled_from(ACCOUNTS)),
)
EVENTS = st.builds(converted, st.sampled_from(NAMES), st.sampled_from(SOURCES), st.sampled_from(ACCOUNTS))


@given(st.lists(st.tuples(CONDITIONS, st.booleans()), max_size=5), st.lists(EVENTS, max_size=5))
def test_selection_agrees_with_a_plain_reading(
    asked: list[tuple[tuple[str, str], bool]], events: list[ConversionEvent]
) -> None:
    """Selection equals a plain reading: for each field one ``=`` value matches, and no ``!=`` value does."""
    texts = [f"{field}{'=' if equal else '!='}{value}" for (field, value), equal in asked]

    def meets(event: ConversionEvent) -> bool:
        values = {"event_name": event.name, "channel": event.action_source, "ad_account": event.account}
        wanted = {field: {v for (f, v), equal in asked if f == field and equal} for (field, _), _ in asked}
        unwanted = {(field, value) for (field, value), equal in asked if not equal}
        return all(not some or values[field] in some for field, some in wanted.items()) and not (
            unwanted & set(values.items())
        )

    expected = [event if meets(event) else Filtered(NOT_MATCHED) for event in events]
    assert select(texts, *events) == expected
