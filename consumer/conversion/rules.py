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
from math import floor, inf
from typing import Any, Final
from urllib.parse import unquote

from consumer.conversion.amounts import MAX_COUNT, count
from consumer.conversion.countries import CURRENCIES
from consumer.conversion.normalise import LeftOut, text_of, trim
from consumer.conversion.normalise import trimmed_text as trimmed_text  # a rule of this module's too

Rule = Callable[[Any], Any]
"""A value of a record -> the JSON value to send, or a `LeftOut`."""

MOST_REMEMBERED: Final = 8192
"""Answers by field: with digests as values a full memory holds a few megabytes at the worst."""
LONGEST_REMEMBERED: Final = 256
"""Characters."""


class Memory(dict[Any, Any]):
    """What a pure rule answered: ``memory[value]`` is ``rule(value)``, a look-up in C if it was asked before.

    Countries, currencies and the like come again and again. Only short text is remembered, so that a number which
    equals another one's key never finds it, and when there is too much of it all is forgotten: hostile input costs
    what a miss costs, no more.
    """

    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self._rule = rule

    def __missing__(self, value: Any) -> Any:
        answer = self._rule(value)
        if value.__class__ is str and len(value) <= LONGEST_REMEMBERED:
            if len(self) >= MOST_REMEMBERED:
                self.clear()
            self[value] = answer
        return answer


_URL = re.compile(
    r"https?://(?:[^\s/?#\\@]*@)?"
    r"(?:\[[0-9A-Fa-f:.]+\]|[^\s/?#\\@:\[\]]+)(?::(?P<port>[0-9]{0,5}))?"
    r"(?:[/?#][^\x00-\x1f\x7f]*)?",
    re.IGNORECASE,
)
_is_plain_url = re.compile(r"https?://[a-z0-9.-]++(?:/[!-~]*+)?+").fullmatch
"""What almost all URLs look like: a subset of `_URL` that is quick to check."""
_LOCALE = re.compile(r"([A-Za-z]{2})(?:[-_.@][A-Za-z0-9].*|[,;].*)?", re.DOTALL)
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
SECONDS_A_DAY = 86400
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_LAST_ORDINAL = date.max.toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_DIGITS = re.compile(r"[0-9]{9,20}")
_LONGEST_TIME = 64
_LATEST_SECOND = 2**40
"""Bound on a time that is sent without a look at the clock: far beyond any year a calendar holds."""


def text_up_to(longest: int) -> Rule:
    """A rule for text of at most `longest` characters; longer text is left out, never cut."""

    def rule(value: Any) -> str | LeftOut:
        text = text_of(value)
        return text if isinstance(text, LeftOut) or len(text) <= longest else LeftOut.MALFORMED

    return rule


def web_url(value: Any) -> str | LeftOut:
    """An absolute http or https URL, as it is, query and all."""
    if value.__class__ is str and _is_plain_url(value):
        return value
    url = trimmed_text(value)
    if not isinstance(url, str):
        return url
    match = _URL.fullmatch(url)
    if match is None or (match["port"] and int(match["port"]) > 65535):
        return LeftOut.MALFORMED
    return url


_EPIK = re.compile(r"(?:^|&)epik=([^&]+)")
_CLICK_ID = re.compile(r"[!-~]{1,1024}")


def click_id_of(url: str) -> str | None:
    """The click id that an ad gave to the address of the page it leads to; None if there is none.

    It is the value of the first query parameter called ``epik`` (so spelled) that is not empty, with its ``%XX``
    decoded: 1 to 1024 visible ASCII characters, else there is none. A ``+`` stays one: ids may hold it, and no blank.
    """
    match = _EPIK.search(url.partition("#")[0].partition("?")[2])
    found = "" if match is None else unquote(match[1])
    return found if _CLICK_ID.fullmatch(found) else None


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
"""What well-known crawlers write into their user agents, in lower case: their operators' own pages say so, and the
public list monperrus/crawler-user-agents gathers them. No general words (bot, crawler): phones are called so, too."""
_PIECES_OF_CRAWLERS = ("bot", "spider", "externalhit", "headless", "mediapartners", "slurp")
"""Each of them holds one of these: most agents hold none, which is quickly told."""
_LONGEST_AGENT = 1024


def is_crawler(agent: str) -> bool:
    """Whether this user agent is a well-known crawler's; its first 1024 characters tell."""
    lowered = agent[:_LONGEST_AGENT].lower()
    for piece in _PIECES_OF_CRAWLERS:
        if piece in lowered:
            return any(crawler in lowered for crawler in CRAWLERS)
    return False


def flag(value: Any) -> bool | LeftOut:
    """True or false; also as the words, and as 1 and 0."""
    if value is True or value is False:
        return bool(value)
    text = trimmed_text(value)
    return text if isinstance(text, LeftOut) else _FLAGS.get(text.lower(), LeftOut.MALFORMED)


def language(value: Any) -> str | LeftOut:
    """Two letters, lower case, cut from a locale: ``en`` of ``en-US``, ``en_US.UTF-8``."""
    text = trimmed_text(value)
    if not isinstance(text, str):
        return text
    match = _LOCALE.fullmatch(text)
    return match[1].lower() if match else LeftOut.MALFORMED


def currency(value: Any) -> str | LeftOut:
    """An ISO 4217 code, upper case."""
    text = trimmed_text(value)
    if not isinstance(text, str):
        return text
    code = text.upper()
    return code if code in CURRENCIES else LeftOut.MALFORMED


def order_id(value: Any) -> str | LeftOut:
    """Text as it is; 0 is what shops write where there is no order."""
    text = text_of(value)
    return LeftOut.PLACEHOLDER if isinstance(text, str) and trim(text) == "0" else text


def integer(low: int, high: int) -> Rule:
    """A rule for whole numbers from `low` to `high`."""

    def rule(value: Any) -> int | LeftOut:
        number = count(value)
        if isinstance(number, LeftOut):
            return number
        return number if number is not None and low <= number <= high else LeftOut.MALFORMED

    return rule


def choice(words: Iterable[str]) -> Rule:
    """A rule for one of `words`, in any case."""
    allowed = frozenset(words)

    def rule(value: Any) -> str | LeftOut:
        text = trimmed_text(value)
        if not isinstance(text, str):
            return text
        return text.lower() if text.lower() in allowed else LeftOut.MALFORMED

    return rule


def total(values: Iterable[Any]) -> int | LeftOut | None:
    """The sum of quantities; None if one is negative; malformed if one is, for a wrong sum is worse than none."""
    numbers: list[int] = []
    for value in values:
        number = count(value)
        if number is None:
            return None
        if number is LeftOut.MALFORMED:
            return LeftOut.MALFORMED
        if isinstance(number, int):
            numbers.append(number)
    if not numbers:
        return LeftOut.BLANK
    return sum(numbers) if sum(numbers) <= MAX_COUNT else LeftOut.MALFORMED


def moment(units: int) -> Rule:
    """A rule for times: a number of units (`units` of them make a second) or ISO 8601 text; gives units, whole.

    Text without a zone is UTC. Nine digits or more are a number written as text; fewer are a date. Whether the
    time is a likely one is not asked here.
    """

    def rule(value: Any) -> int | LeftOut:
        if isinstance(value, str):
            text = trim(value)
            if _DIGITS.fullmatch(text):
                return int(text)
            return _iso_time(text, units) if text else LeftOut.BLANK
        if value is None:
            return LeftOut.BLANK
        return floor(value) if _is_finite(value) else LeftOut.MALFORMED

    return rule


def event_seconds(units: int, days: bool) -> Rule:
    """A rule for times sent as whole seconds since 1970; with `days`, an ``int`` counts days."""
    in_units = moment(units)

    def rule(value: Any) -> int | LeftOut:
        time: int | LeftOut = in_units(value * SECONDS_A_DAY if days and type(value) is int else value)
        if isinstance(time, LeftOut):
            return time
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
        if not 0 < ordinal <= _LAST_ORDINAL:
            return LeftOut.MALFORMED
        return self._rule(date.fromordinal(ordinal).isoformat())


def _is_finite(value: Any) -> bool:
    """Whether `value` is a number that can be floored at no great cost."""
    if isinstance(value, Decimal):
        return value.is_finite() and value.adjusted() <= _LONGEST_TIME
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) != inf
        and value == value
    )


def _iso_time(text: str, units: int) -> int | LeftOut:
    if len(text) > _LONGEST_TIME:
        return LeftOut.MALFORMED
    try:
        time = datetime.fromisoformat(text)
        time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
        microseconds = (time - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return LeftOut.MALFORMED
    return microseconds * units // 1_000_000
