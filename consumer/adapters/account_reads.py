"""What Pinterest knows of an ad account, asked with a token that may read: translated, and bounded.

One GET each, tried once. The answers are described in Pinterest's API description (docs/platform.md), but may be of
another version. So whatever is not as described is not known, and never a fault of anybody's: an answer of which
nothing can be read raises `NotKnown`, an item that cannot be read is omitted. Texts of an answer will be shown, so
they are masked as the API's messages are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import orjson

from consumer.adapters.conversions_api import ConversionsApi
from consumer.engine.figures.quality import ComponentCoverage, QualityScore
from consumer.engine.messages import Unanswered
from consumer.engine.sending.masking import mask

# Bytes of an answer. One of eleven components and twenty event names has some 30 KB, and parsing holds up the loop.
_MAX_BYTES: Final = 1 << 20
# Of each kind in an answer: tags, scores, components, event names, issues. And characters of a text.
_MAX_ITEMS, _MAX_TEXT = 50, 100
_SCORES: Final = ("GOOD", "FAIR", "NEEDS_IMPROVEMENT")
_REFUSED: Final = {
    401: "the token is refused: set a valid one in PINTEREST_READ_TOKEN or its file",
    403: "the token may not read this ad account: it needs the scope ads:read, and access to the account",
    404: "this account or this question does not exist there: check PINTEREST_API_URL",
}
_NOT_AS_DESCRIBED: Final = "the answer is not as Pinterest describes it"


class NotKnown(Exception):
    """There is no answer, or none that can be read. The text says why, and what to do."""


@dataclass(frozen=True)
class AccountReads:
    """Asks for an ad account at `api`, whose token may read. Each question raises `NotKnown`."""

    api: ConversionsApi

    async def scores(self, account: str) -> tuple[QualityScore, ...]:
        """Return the event quality scores of the last day; none if there is no score yet."""
        answer = await self._ask(account, "conversion_eqs?lookback_period=1d")
        found = tuple(filter(None, map(_score, _objects(answer))))
        if answer and not found:
            raise NotKnown(_NOT_AS_DESCRIBED)
        return found

    async def tags(self, account: str) -> list[tuple[str, float | None]]:
        """Return the account's tags by name, and when each fired last, in seconds since 1970; None: not known."""
        items = _objects(await self._ask(account, "conversion_tags"), "items")
        fired = [_number(item.get("last_fired_time_ms"), 1e15) for item in items]
        return [(_text(item.get("name")), ms and ms / 1000) for item, ms in zip(items, fired, strict=True)]

    async def own_events(self, account: str) -> set[str]:
        """Return the names of the events that the advertiser has registered."""
        items = _objects(await self._ask(account, "advertiser_defined_events"), "items")
        return {str(item.get("name")) for item in items}

    async def _ask(self, account: str, question: str) -> Any:
        answer = await self.api.get(account, question)
        if isinstance(answer, Unanswered):
            raise NotKnown(f"no answer ({answer.reason})" + (f": {answer.said}" if answer.said else ""))
        if answer.status != 200:
            raise NotKnown(f"{_REFUSED.get(answer.status, 'it was not answered')} (HTTP {answer.status})")
        try:
            return orjson.loads(answer.body if len(answer.body) <= _MAX_BYTES else b"")
        except orjson.JSONDecodeError:
            raise NotKnown(_NOT_AS_DESCRIBED) from None


def _objects(answer: object, under: str = "") -> list[dict[str, Any]]:
    """Return the objects of a list, or of that `under` a name."""
    items = answer.get(under) if isinstance(answer, dict) else None if under else answer
    if not isinstance(items, list):
        raise NotKnown(_NOT_AS_DESCRIBED)
    return [item for item in items[:_MAX_ITEMS] if isinstance(item, dict)]


def _score(item: dict[str, Any]) -> QualityScore | None:
    """Return one score; None: nothing of it can be read."""
    platform, source = _text(item.get("source_platform")), _text(item.get("ingestion_source"))
    status = item.get("overall_status")
    score = status if status in _SCORES else None
    components = {
        (component, name): ComponentCoverage(
            coverage, _number(details.get("overlap"), 100), (*_issues(details),)
        )
        for component, by_name in _named(item.get("quality_components"))
        for name, details in _named(by_name)
        if (coverage := _number(details.get("coverage"), 100)) is not None
    }
    return QualityScore(platform, source, score, components) if score or components else None


def _named(value: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects in an object, under their names."""
    for name, inner in islice(value.items() if isinstance(value, dict) else (), _MAX_ITEMS):
        if isinstance(inner, dict):
            yield _text(name), inner


def _issues(details: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a component: the reason of each issue, or else its name."""
    issues = details.get("issues")
    for issue in issues[:_MAX_ITEMS] if isinstance(issues, list) else ():
        if isinstance(issue, dict):
            yield _text(issue.get("reason") or issue.get("name"))


def _text(value: object) -> str:
    """Return a text as it may be shown: one line, masked and bounded."""
    return mask(value)[:_MAX_TEXT] if isinstance(value, str) and value else "not known"


def _number(value: object, highest: float) -> float | None:
    """Return a number from 0 to `highest`; None: it is none. In Python, true is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= highest else None
