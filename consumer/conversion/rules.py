"""The rules for single values of event and custom data.

Theory of operation. Each rule takes any value that a record may hold and returns the JSON value to send or a `Omitted`.
No rule raises errors or keeps state. They are the table "Event and custom data" of the platform facts; user data has
its own module, `normalise`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from math import floor, isfinite
from typing import Any, Final
from urllib.parse import unquote

from consumer.conversion.amounts import MAX_COUNT, count
from consumer.conversion.countries import CURRENCIES
from consumer.conversion.normalise import Omitted, text_of, trim
from consumer.conversion.normalise import trimmed_text as trimmed_text  # a rule of this module's too
from consumer.conversion.placeholders import NO_CURRENCIES

Rule = Callable[[Any], Any]  # a value of a record -> the JSON value to send, or a `Omitted`

MAX_REMEMBERED: Final = 8192  # answers by field: a full memory of digests holds a few megabytes at the worst
LONGEST_REMEMBERED: Final = 256  # characters


class Memory(dict[Any, Any]):
    """A pure rule with a memory of its answers; a `Rule` itself.

    Countries, currencies and the like repeat often. Only short text is remembered: numbers of different types can be
    equal, and would find each other's answers. A full memory is emptied: hostile input costs no more than misses.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self._rule = rule

    def __call__(self, value: Any) -> Any:
        """Return the rule's answer. 1 and 1.0 and True are one key of a dict, so only text is looked up."""
        return self[value] if value.__class__ is str else self._rule(value)

    def __missing__(self, value: Any) -> Any:
        answer = self._rule(value)
        if len(value) <= LONGEST_REMEMBERED:
            # Emptying all costs less than tracking which answers are used least.
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[value] = answer
        return answer


def of_text(take: Callable[[str], Any]) -> Rule:
    """Return a rule that calls `take` with the trimmed text of a value, if it has one."""

    def rule(value: Any) -> Any:
        text = trimmed_text(value)
        return take(text) if isinstance(text, str) else text

    return rule


# An optional user, a host of letters or an address in brackets, a port, and anything behind.
_URL = re.compile(
    r"https?://(?:[^\s/?#\\@]*@)?"
    r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#\\@:\[\]]+)(?::(?P<port>[0-9]{0,5}))?"
    r"(?:[/?#][^\x00-\x1f\x7f]*)?",
    re.IGNORECASE,
)
# The form of almost all URLs: a subset of `_URL` that is quick to check.
_is_plain_url = re.compile(r"https?://[a-z0-9.-]++(?:/[!-~]*+)?+").fullmatch
# The language of a locale: ``en`` of ``en``, ``en-US``, ``en_US.UTF-8``, ``en-GB,en;q=0.9``.
_LOCALE = re.compile(r"([A-Za-z]{2})(?:[-_.@][A-Za-z0-9].*|[,;].*)?", re.DOTALL)
# Forms that exports give to booleans.
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
SECONDS_A_DAY = 86400
# The logical types of a moment, and how many of their units make a second.
TIMESTAMPS: Final = {"timestamp-millis": 10**3, "timestamp-micros": 10**6, "timestamp-nanos": 10**9}
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_LAST_ORDINAL = date.max.toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# A count of time units as text: eight digits are a date, and more than twenty no 64-bit number.
_DIGITS = re.compile(r"[0-9]{9,20}")
_LONGEST_TIME = 64
# Limit of a time that is sent without a check against the clock: far beyond any year of a calendar.
_LATEST_SECOND = 2**40


def text_up_to(longest: int) -> Rule:
    """Return a rule for text of at most `longest` characters; longer text is omitted, never cut."""

    def rule(value: Any) -> str | Omitted:
        text = text_of(value)
        return text if isinstance(text, Omitted) or len(text) <= longest else Omitted.MALFORMED

    return rule


def web_url(value: Any) -> str | Omitted:
    """Return an absolute http or https URL as it is, with its query."""
    # A fast way: nearly all are plain. The class check excludes values that only behave like text.
    if value.__class__ is str and _is_plain_url(value):
        return value
    url = trimmed_text(value)
    if not isinstance(url, str):
        return url
    match = _URL.fullmatch(url)
    if match is None or (match["port"] and int(match["port"]) > 65535):
        return Omitted.MALFORMED
    return url


# Only in lower case, as in the ads: another parameter may look alike.
_EPIK = re.compile(r"(?:^|&)epik=([^&]+)")
LONGEST_CLICK_ID = 1024
_CLICK_ID = re.compile(rf"[!-~]{{1,{LONGEST_CLICK_ID}}}")


def click_id_of(url: str) -> str | None:
    """Return the click id that an ad added to the address of its landing page; None if there is none.

    It is the value of the first query parameter called ``epik`` (in lower case) that is not empty, with its ``%XX``
    decoded: visible ASCII characters, at most `LONGEST_CLICK_ID`, else there is none. A ``+`` stays one: ids may hold
    it, and no blank.
    """
    # The part after # is for the browser, and not part of the query.
    match = _EPIK.search(url.partition("#")[0].partition("?")[2])
    found = "" if match is None else unquote(match[1])
    return found if _CLICK_ID.fullmatch(found) else None


# Words in the user agents of well-known crawlers, in lower case, from their operators' pages and the public list
# monperrus/crawler-user-agents. No general words (bot, crawler): phones have such names, too. Each stands behind a
# piece of it: most agents have none of these pieces, which is quick to check.
CRAWLERS: Final = {
    "bot": (
        *("adsbot-google", "ahrefsbot", "amazonbot", "applebot", "bingbot", "ccbot", "claudebot", "dotbot"),
        *("duckduckbot", "googlebot", "gptbot", "linkedinbot", "mj12bot", "petalbot", "pinterestbot"),
        *("semrushbot", "storebot-google", "twitterbot", "yandexbot"),
    ),
    "spider": ("baiduspider", "bytespider"),
    "externalhit": ("facebookexternalhit",),
    "headless": ("headlesschrome",),
    "mediapartners": ("mediapartners-google",),
    "slurp": ("yahoo! slurp",),
}
_LONGEST_AGENT = 1024


def is_crawler(agent: str) -> bool:
    """Return whether this user agent is a well-known crawler's. Only its first 1024 characters are checked."""
    lowered = agent[:_LONGEST_AGENT].lower()
    for piece, crawlers in CRAWLERS.items():
        if piece in lowered and any(crawler in lowered for crawler in crawlers):
            return True
    return False


def flag(value: Any) -> bool | Omitted:
    """Return True or False, which may be given as words, or as 1 and 0."""
    # An int of 1 equals True but is none: it goes through the rule below.
    if value is True or value is False:
        return bool(value)
    text = trimmed_text(value)
    return text if isinstance(text, Omitted) else _FLAGS.get(text.lower(), Omitted.MALFORMED)


@of_text
def language(text: str) -> str | Omitted:
    """Return the two letters, in lower case, that a locale begins with: ``en`` of ``en-US``, ``en_US.UTF-8``."""
    # Two letters alone, or with a region, a script or a charset behind them.
    match = _LOCALE.fullmatch(text)
    return match[1].lower() if match else Omitted.MALFORMED


@of_text
def currency(text: str) -> str | Omitted:
    """Return an ISO 4217 code in upper case; one that is no money is a placeholder."""
    # The API's codes are upper case.
    code = text.upper()
    if code in NO_CURRENCIES:
        return Omitted.PLACEHOLDER
    return code if code in CURRENCIES else Omitted.MALFORMED


def order_id(value: Any) -> str | Omitted:
    """Return text as it is; 0, which shops write if there is no order, is a placeholder."""
    # Order ids begin at 1, so 0 is a default of the shop's software.
    text = text_of(value)
    return Omitted.PLACEHOLDER if isinstance(text, str) and trim(text) == "0" else text


def integer(high: int) -> Rule:
    """Return a rule for whole numbers from 0 to `high`."""

    def rule(value: Any) -> int | Omitted:
        number = count(value)
        if isinstance(number, Omitted):
            return number
        return number if number is not None and number <= high else Omitted.MALFORMED

    return rule


def choice(words: Iterable[str]) -> Rule:
    """Return a rule for one of `words`, in any case."""
    allowed = frozenset(words)
    return of_text(lambda text: text.lower() if text.lower() in allowed else Omitted.MALFORMED)


def total(values: Iterable[Any]) -> int | Omitted | None:
    """Return the sum of quantities; None if one is negative; malformed if one is malformed."""
    summed: int | Omitted = Omitted.BLANK
    for number in map(count, values):
        # A sum without a malformed quantity would be wrong.
        if number is None or number is Omitted.MALFORMED:
            return number
        if isinstance(number, int):
            summed = number if isinstance(summed, Omitted) else summed + number
    return summed if isinstance(summed, Omitted) or summed <= MAX_COUNT else Omitted.MALFORMED


def units_of(kinds: frozenset[str], otherwise: int) -> int:
    """Return how many units of a time of these kinds make a second: as the schema says, or else `otherwise`."""
    # A logical type has an exact unit; that of the mapping is for plain numbers.
    said = [units for kind, units in TIMESTAMPS.items() if kind in kinds]
    return said[0] if said else 1 if "date" in kinds else otherwise


def moment(units: int, days: bool) -> Rule:
    """Return a rule for times: a number of units (`units` make a second) or ISO 8601 text. It returns whole units.

    With `days`, an ``int`` counts days. Text without a zone is UTC. Nine digits or more are a number written as text;
    fewer are a date. It does not check whether the time is likely.
    """

    def rule(value: Any) -> int | Omitted:
        if type(value) is int:
            return value * SECONDS_A_DAY if days else value
        if isinstance(value, str):
            text = trim(value)
            # Fewer digits are a date: 20251009.
            if _DIGITS.fullmatch(text):
                return int(text)
            return _iso_time(text, units) if text else Omitted.BLANK
        if value is None:
            return Omitted.BLANK
        if isinstance(value, Decimal):  # 1E+999999 is short, and floored it is not
            finite = value.is_finite() and value.adjusted() <= _LONGEST_TIME
        else:
            finite = isinstance(value, float) and isfinite(value)
        return floor(value) if finite else Omitted.MALFORMED

    return rule


def local_moment(units: int, days: bool, zone: tzinfo) -> Rule:
    """Return a rule as `moment` does, for times of a clock in `zone`: of text that names no zone, and of numbers."""
    count_of = moment(units, days)

    def rule(value: Any) -> int | Omitted:
        if isinstance(value, str) and not _DIGITS.fullmatch(text := trim(value)):
            return _iso_time(text, units, zone) if text else Omitted.BLANK
        time: int | Omitted = count_of(value)
        if isinstance(time, Omitted):
            return time
        try:
            # Of an hour that comes twice the first one is meant.
            local = (_EPOCH + timedelta(microseconds=time * 1_000_000 // units)).replace(tzinfo=zone)
            return (local - _EPOCH) // _MICROSECOND * units // 1_000_000
        except OverflowError:  # beyond the years 1 to 9999 no zone has a time
            return Omitted.MALFORMED

    return rule


def event_seconds(units: int, days: bool) -> Rule:
    """Return a rule for times that are sent as whole seconds since 1970; see `moment`."""
    in_units = moment(units, days)

    def rule(value: Any) -> int | Omitted:
        time: int | Omitted = in_units(value)
        if isinstance(time, Omitted):
            return time
        # No clock is checked here: only the calendar is a bound.
        return time // units if 0 <= time <= _LATEST_SECOND * units else Omitted.MALFORMED

    return rule


class CalendarDay:
    """`rule` for a day that the record holds as a number: `length` of them make a day."""

    __slots__ = ("_rule", "length")

    def __init__(self, units: int, days: bool, rule: Rule) -> None:
        """Make the rule. The number counts days if `days`, else units, of which `units` make a second."""
        self._rule = rule
        self.length = 1 if days else units * SECONDS_A_DAY

    def __call__(self, value: Any) -> Any:
        """See `Rule`."""
        if type(value) is not int:
            return self._rule(value)
        ordinal = value // self.length + _EPOCH_ORDINAL
        # Beyond the years 1 to 9999 there is no calendar day to write.
        if not 0 < ordinal <= _LAST_ORDINAL:
            return Omitted.MALFORMED
        return self._rule(date.fromordinal(ordinal).isoformat())


def _iso_time(text: str, units: int, zone: tzinfo = UTC) -> int | Omitted:
    # Python's parser takes time by the length, also for text that is no date.
    if len(text) > _LONGEST_TIME:
        return Omitted.MALFORMED
    try:
        time = datetime.fromisoformat(text)
        # Text without a zone counts as UTC, unless the mapping says where the clock was.
        time = time.replace(tzinfo=zone) if time.tzinfo is None else time
        microseconds = (time - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return Omitted.MALFORMED
    return microseconds * units // 1_000_000
