"""The rules for single values of event and custom data: a record's value in, what the API gets out.

Theory of operation. Each rule takes any value a record may hold and answers the JSON value to send or a
`LeftOut`. None raises, none keeps state. They are the table "Event and custom data" of the platform facts;
user data has its own module, `normalise`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from math import floor, isfinite
from typing import Any, Final
from urllib.parse import unquote

from consumer.conversion.amounts import MAX_COUNT, count
from consumer.conversion.countries import CURRENCIES
from consumer.conversion.normalise import LeftOut, text_of, trim
from consumer.conversion.normalise import trimmed_text as trimmed_text  # a rule of this module's too

Rule = Callable[[Any], Any]  # a value of a record -> the JSON value to send, or a `LeftOut`

MOST_REMEMBERED: Final = 8192  # answers by field: a full memory of digests holds a few megabytes at the worst
LONGEST_REMEMBERED: Final = 256  # characters


class Memory(dict[Any, Any]):
    """A pure rule that remembers what it answered: a `Rule` itself.

    Countries, currencies and the like come again and again. Only short text is remembered: numbers of different types
    can be equal, and would find each other's answers. When the memory is full, all of it is forgotten: hostile input
    costs what a miss costs, no more.
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
            # To forget all costs less than to know which was asked for least.
            if len(self) >= MOST_REMEMBERED:
                self.clear()
            self[value] = answer
        return answer


def of_text(take: Callable[[str], Any]) -> Rule:
    """Return the rule that gives the trimmed text of a value, if it has one, to `take`."""

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
# What almost all URLs look like: a subset of `_URL` that is quick to check.
_is_plain_url = re.compile(r"https?://[a-z0-9.-]++(?:/[!-~]*+)?+").fullmatch
# The language of a locale: ``en`` of ``en``, ``en-US``, ``en_US.UTF-8``, ``en-GB,en;q=0.9``.
_LOCALE = re.compile(r"([A-Za-z]{2})(?:[-_.@][A-Za-z0-9].*|[,;].*)?", re.DOTALL)
# What exports make of booleans.
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
SECONDS_A_DAY = 86400
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_LAST_ORDINAL = date.max.toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# A count of time units as text: eight digits are a date, and more than twenty no 64-bit number.
_DIGITS = re.compile(r"[0-9]{9,20}")
_LONGEST_TIME = 64
# Of a time that is sent without a look at the clock: far beyond any year of a calendar.
_LATEST_SECOND = 2**40


def text_up_to(longest: int) -> Rule:
    """Return a rule for text of at most `longest` characters; longer text is left out, never cut."""

    def rule(value: Any) -> str | LeftOut:
        text = text_of(value)
        return text if isinstance(text, LeftOut) or len(text) <= longest else LeftOut.MALFORMED

    return rule


def web_url(value: Any) -> str | LeftOut:
    """Return an absolute http or https URL as it is, with its query."""
    # Nearly all are plain; the class keeps out what only behaves like text.
    if value.__class__ is str and _is_plain_url(value):
        return value
    url = trimmed_text(value)
    if not isinstance(url, str):
        return url
    match = _URL.fullmatch(url)
    if match is None or (match["port"] and int(match["port"]) > 65535):
        return LeftOut.MALFORMED
    return url


# Only in lower case: the ads write it so, and another parameter may only look like it.
_EPIK = re.compile(r"(?:^|&)epik=([^&]+)")
_CLICK_ID = re.compile(r"[!-~]{1,1024}")


def click_id_of(url: str) -> str | None:
    """Return the click id that an ad added to the address of its landing page; None if there is none.

    It is the value of the first query parameter called ``epik`` (in lower case) that is not empty, with its ``%XX``
    decoded: 1 to 1024 visible ASCII characters, else there is none. A ``+`` stays one: ids may hold it, and no blank.
    """
    # What follows # is the browser's, and is not part of the query.
    match = _EPIK.search(url.partition("#")[0].partition("?")[2])
    found = "" if match is None else unquote(match[1])
    return found if _CLICK_ID.fullmatch(found) else None


# What well-known crawlers write into their user agents, in lower case: their operators' own pages say so, and the
# public list monperrus/crawler-user-agents gathers them. No general words (bot, crawler): phones are called so, too.
CRAWLERS: Final = (
    "adsbot-google",
    "ahrefsbot",
    "amazonbot",
    "applebot",
    "baiduspider",
    "bingbot",
    "bytespider",
    "ccbot",
    "claudebot",
    "dotbot",
    "duckduckbot",
    "facebookexternalhit",
    "googlebot",
    "gptbot",
    "headlesschrome",
    "linkedinbot",
    "mediapartners-google",
    "mj12bot",
    "petalbot",
    "pinterestbot",
    "semrushbot",
    "storebot-google",
    "twitterbot",
    "yahoo! slurp",
    "yandexbot",
)
# Each of them holds one of these: most agents hold none, which is quickly seen.
_PIECES_OF_CRAWLERS = ("bot", "spider", "externalhit", "headless", "mediapartners", "slurp")
_LONGEST_AGENT = 1024


def is_crawler(agent: str) -> bool:
    """Return whether this user agent is a well-known crawler's. Only its first 1024 characters are looked at."""
    lowered = agent[:_LONGEST_AGENT].lower()
    for piece in _PIECES_OF_CRAWLERS:
        if piece in lowered:
            return any(crawler in lowered for crawler in CRAWLERS)
    return False


def flag(value: Any) -> bool | LeftOut:
    """Return True or False, which may be given as words, or as 1 and 0."""
    # An int of 1 equals True and is not it: it goes the long way.
    if value is True or value is False:
        return bool(value)
    text = trimmed_text(value)
    return text if isinstance(text, LeftOut) else _FLAGS.get(text.lower(), LeftOut.MALFORMED)


@of_text
def language(text: str) -> str | LeftOut:
    """Return the two letters, in lower case, that a locale begins with: ``en`` of ``en-US``, ``en_US.UTF-8``."""
    # Two letters alone, or with a region, a script or a charset behind them.
    match = _LOCALE.fullmatch(text)
    return match[1].lower() if match else LeftOut.MALFORMED


@of_text
def currency(text: str) -> str | LeftOut:
    """Return an ISO 4217 code in upper case."""
    # The API's codes are upper case.
    code = text.upper()
    return code if code in CURRENCIES else LeftOut.MALFORMED


def order_id(value: Any) -> str | LeftOut:
    """Return text as it is; 0, which shops write where there is no order, stands for nothing."""
    # Orders are numbered from 1, so 0 is a default of the shop's software.
    text = text_of(value)
    return LeftOut.PLACEHOLDER if isinstance(text, str) and trim(text) == "0" else text


def integer(high: int) -> Rule:
    """Return a rule for whole numbers from 0 to `high`."""

    def rule(value: Any) -> int | LeftOut:
        number = count(value)
        if isinstance(number, LeftOut):
            return number
        return number if number is not None and number <= high else LeftOut.MALFORMED

    return rule


def choice(words: Iterable[str]) -> Rule:
    """Return a rule for one of `words`, in any case."""
    allowed = frozenset(words)
    return of_text(lambda text: text.lower() if text.lower() in allowed else LeftOut.MALFORMED)


def total(values: Iterable[Any]) -> int | LeftOut | None:
    """Return the sum of quantities; None if one is negative; malformed if one is malformed."""
    summed: int | LeftOut = LeftOut.BLANK
    for number in map(count, values):
        # A sum without it would be a wrong one.
        if number is None or number is LeftOut.MALFORMED:
            return number
        if isinstance(number, int):
            summed = number if isinstance(summed, LeftOut) else summed + number
    return summed if isinstance(summed, LeftOut) or summed <= MAX_COUNT else LeftOut.MALFORMED


def moment(units: int, days: bool) -> Rule:
    """Return a rule for times: a number of units (`units` make a second) or ISO 8601 text. It answers whole units.

    With `days`, an ``int`` counts days. Text without a zone is UTC. Nine digits or more are a number written as text;
    fewer are a date. Whether the time is a likely one is not asked here.
    """

    def rule(value: Any) -> int | LeftOut:
        if type(value) is int:
            return value * SECONDS_A_DAY if days else value
        if isinstance(value, str):
            text = trim(value)
            # Fewer digits are a date: 20251009.
            if _DIGITS.fullmatch(text):
                return int(text)
            return _iso_time(text, units) if text else LeftOut.BLANK
        if value is None:
            return LeftOut.BLANK
        if isinstance(value, Decimal):  # 1E+999999 is short, and floored it is not
            finite = value.is_finite() and value.adjusted() <= _LONGEST_TIME
        else:
            finite = isinstance(value, float) and isfinite(value)
        return floor(value) if finite else LeftOut.MALFORMED

    return rule


def event_seconds(units: int, days: bool) -> Rule:
    """Return a rule for times that are sent as whole seconds since 1970; see `moment`."""
    in_units = moment(units, days)

    def rule(value: Any) -> int | LeftOut:
        time: int | LeftOut = in_units(value)
        if isinstance(time, LeftOut):
            return time
        # No clock is looked at here: only what a calendar holds bounds it.
        return time // units if 0 <= time <= _LATEST_SECOND * units else LeftOut.MALFORMED

    return rule


class CalendarDay:
    """`rule` for a day that the record holds as a number: `length` of them make a day."""

    __slots__ = ("_rule", "length")

    def __init__(self, units: int, days: bool, rule: Rule) -> None:
        """The number counts days if `days`, else `units` per second."""
        self._rule = rule
        self.length = 1 if days else units * SECONDS_A_DAY

    def __call__(self, value: Any) -> Any:
        """See `Rule`."""
        if type(value) is not int:
            return self._rule(value)
        ordinal = value // self.length + _EPOCH_ORDINAL
        # Beyond the years 1 to 9999 there is no calendar day to write.
        if not 0 < ordinal <= _LAST_ORDINAL:
            return LeftOut.MALFORMED
        return self._rule(date.fromordinal(ordinal).isoformat())


def _iso_time(text: str, units: int) -> int | LeftOut:
    # Python's parser takes time with the length, also for what is none.
    if len(text) > _LONGEST_TIME:
        return LeftOut.MALFORMED
    try:
        time = datetime.fromisoformat(text)
        # Text without a zone is taken for UTC: the records' zone is not known.
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
        microseconds = (time - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return LeftOut.MALFORMED
    return microseconds * units // 1_000_000
