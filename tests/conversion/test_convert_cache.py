"""What the converter's caches remember, how much of it, and when remembering is not worth it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from consumer.conversion.cache import KEEP, LONGEST_KEY, MOST_ENTRIES, REST, TRIAL, WATCH, Cache, Watch


def run(cache: Cache, values: Iterable[str], per_event: int = 1) -> None:
    """Events go by, with so many look-ups each: the cache is watched as `Watch` does."""
    for number, value in enumerate(values, start=1):
        assert cache[value] == value.upper()
        if number % (WATCH * per_event) == 0:
            cache.watch(WATCH)


def new_values(count: int) -> Iterable[str]:
    """Values none of which comes again."""
    return (f"new{number}" for number in range(count))


def test_what_hardly_comes_again_is_not_remembered() -> None:
    """A cache of nothing but new values forgets them all and rests; after that it tries again."""
    cache = Cache(str.upper)
    values = iter(new_values(TRIAL + WATCH))
    run(cache, islice(values, TRIAL - WATCH))
    assert len(cache) == TRIAL - WATCH
    run(cache, values)
    assert len(cache) == 0
    run(cache, ["a"] * (REST - WATCH))
    assert len(cache) == 0
    run(cache, ["a"] * (WATCH + 1))
    assert dict(cache) == {"a": "A"}


def test_a_resting_cache_is_its_rule() -> None:
    """At rest nothing stands between a look-up and the rule: that is what rest is for."""
    rule = str.upper
    cache = Cache(rule)
    run(cache, new_values(TRIAL + WATCH))
    assert cache.__missing__ is rule


def test_what_comes_again_stays() -> None:
    """A third of the values is new: the others are worth it, however often that is counted."""
    cache, events = Cache(str.upper), 3 * KEEP + TRIAL
    run(cache, (f"a{number // 3}" for number in range(events)))
    assert len(cache) > MOST_ENTRIES // 2
    assert f"a{(events - 1) // 3}" in cache


def test_what_is_known_is_known_while_look_ups_are_counted() -> None:
    """What lies aside meanwhile is not worked out again, and is taken back."""
    asked: list[str] = []

    def rule(value: str) -> str:
        asked.append(value)
        return value.upper()

    cache = Cache(rule)
    run(cache, (f"a{number % 100}" for number in range(TRIAL)))
    assert len(cache) == 0
    run(cache, (f"a{number % 101}" for number in range(WATCH)))
    assert len(cache) == len(asked) == 101


def test_a_value_may_come_again_some_thousand_events_later() -> None:
    """Shoppers who are back after a few minutes: a new cache is not judged before it could have met one again."""
    cache, apart = Cache(str.upper), TRIAL - 4 * WATCH
    run(cache, (f"a{number % apart}" for number in range(2 * TRIAL)))
    assert len(cache) == apart


def test_the_share_is_one_of_look_ups_not_of_events() -> None:
    """Ten items an event, three of them new: most look-ups find something."""
    cache = Cache(str.upper)
    values = (f"new{number}" if number % 10 < 3 else "known" for number in range(2 * TRIAL * 10))
    run(cache, values, per_event=10)
    assert "known" in cache


def test_a_field_that_few_events_have_rests_too() -> None:
    """One event in eight has a value, and it is always new: that is not worth it either."""
    cache = Cache(str.upper)
    for number in range((TRIAL + WATCH) // 8):
        assert cache[f"new{number}"] == f"NEW{number}"
        if (number + 1) % (WATCH // 8) == 0:
            cache.watch(WATCH)
    assert len(cache) == 0


def test_a_field_that_no_event_has_is_left_alone() -> None:
    """No look-ups are no reason to do anything, and none to fail."""
    cache = Cache(str.upper)
    for _ in range((TRIAL + WATCH) // WATCH):
        cache.watch(WATCH)
    assert cache["a"] == "A"
    assert dict(cache) == {"a": "A"}


def test_the_cache_is_bounded_in_entries_and_key_length() -> None:
    """However many values come, no more than the limit are remembered, and no long one is."""
    cache = Cache(lambda value: f"<{value}>", most=100)
    for number in range(10_000):
        assert cache[f"v{number}"] == f"<v{number}>"
        assert len(cache) <= 100
    assert "v9999" in cache
    long = "x" * (LONGEST_KEY + 1)
    assert cache[long] == f"<{long}>"
    assert long not in cache


def test_the_cache_asks_once_and_remembers_text_only() -> None:
    """A remembered value is not worked out again; numbers that equal each other are never mixed up."""
    asked: list[object] = []

    def rule(value: object) -> str:
        asked.append(value)
        return repr(value)

    cache = Cache(rule)
    assert [cache["a"], cache["a"], cache[1], cache[True], cache[1.0]] == ["'a'", "'a'", "1", "True", "1.0"]
    assert asked == ["a", 1, True, 1.0]
    assert list(cache) == ["a"]


_VALUES = st.one_of(
    st.sampled_from(["a", "b", "x" * (LONGEST_KEY + 1), 1, True, 1.0, None]), st.text(max_size=2)
)
_STEPS = st.lists(st.one_of(_VALUES, st.sampled_from([WATCH, TRIAL, REST]).map(lambda n: (n,))), max_size=60)


@given(steps=_STEPS, most=st.integers(1, 5))
def test_whatever_it_remembers_it_says_what_the_rule_says(steps: list[object], most: int) -> None:
    """In every stage, and from one to the next; and it never grows beyond its limit."""
    cache = Cache(repr, most=most)
    for step in steps:
        if isinstance(step, tuple):
            cache.watch(step[0])
        else:
            assert cache[step] == repr(step)
        assert len(cache) <= most


def test_the_watch_asks_each_cache_once_in_so_many_events() -> None:
    """However the events come in slices, all of them are told."""

    class Told(Cache):
        __slots__ = ("events",)

        def __init__(self) -> None:
            super().__init__(str.upper)
            self.events: list[int] = []

        def watch(self, events: int) -> None:
            self.events.append(events)

    caches = [Told(), Told()]
    watch = Watch(lambda: caches)
    for _ in range(3 * WATCH // 100):
        watch.add(100)
    watch.add(3 * WATCH)
    for cache in caches:
        assert all(WATCH <= events < WATCH + 100 for events in cache.events[:-1])
        assert sum(cache.events) == 3 * WATCH // 100 * 100 + 3 * WATCH
