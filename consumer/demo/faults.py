"""The faults of the sandbox: a frozen `Faults` declares them, a `FaultSource` draws them for each call.

The faults of a call depend only on the seed, the number of the call since the faults were set, and (for faults with
seconds or rates) the given clock, so a run can be repeated. Every kind of fault draws its own random number for every
call, so changing one kind does not change the others.

A call meets them in the order of the real system: a proxy that cuts the connection, refuses a large body or answers
itself; then the token, the account, the rate limit, the health of the service, the content of the call; and last the
way of the answer back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from email.utils import formatdate
from enum import Enum
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

_CONFIG: Final = ConfigDict(extra="forbid")
_WINDOW: Final = 60.0


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Chance:
    """When a fault occurs: on the first calls or in the first seconds after it was set, then on a share of calls."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    first: Annotated[int, Field(ge=0)] = 0
    """Number of first calls."""
    seconds: Annotated[float, Field(ge=0)] = 0.0

    def strikes(self, call: int, elapsed: float, draw: float) -> bool:
        """Return True if it occurs for call number `call` (from 0), `elapsed` seconds after it was set.

        `draw` is uniform in [0, 1).
        """
        return call < self.first or elapsed < self.seconds or draw < self.share


NEVER: Final = Chance()


class Wait(Enum):
    """How a 429 says when to try again."""

    RESET = "reset"
    """``x-ratelimit-reset``, as documented."""
    SECONDS = "seconds"
    """``Retry-After`` in seconds."""
    DATE = "date"
    """``Retry-After`` as an HTTP date, rounded up to whole seconds."""
    NONE = "none"
    """Not at all."""


class Marked(Enum):
    """The answer to a call that contains a marked event."""

    BAD_REQUEST = "400"
    """400 that does not name the event; nothing is recorded."""
    UNPROCESSABLE = "422"
    """422 with empty details; nothing is recorded."""
    DETAILED = "422_details"
    """422 with one verdict per event; the other events are recorded."""
    FAILED = "failed"
    """200 in which that event has failed; the others are recorded."""


class Lie(Enum):
    """The form of a wrong answer. The events are recorded all the same."""

    NOT_JSON = "not_json"
    WRONG_COUNT = "wrong_count"
    """One entry too few in ``events``."""
    CONTRADICTION = "contradiction"
    """The counter of processed events contradicts the entries."""
    PROCESSED_WITH_ERROR = "processed_with_error"
    """Processed, but with an ``error_message``."""


class Speech(Enum):
    """The form of a middleman's answer, which never looks like Pinterest's."""

    HTML = "html"
    """An HTML page."""
    EMPTY = "empty"
    JSON = "json"
    """The JSON of a gateway."""
    ECHO = "echo"
    """A page that repeats the token and the body."""


def _as_chance(value: object) -> object:
    return {"share": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


_Chance = Annotated[Chance, BeforeValidator(_as_chance)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Faults:
    """All possible faults; by default there are none. Times in seconds, sizes in bytes.

    Raises ``pydantic.ValidationError`` (a ``ValueError``) for invalid values.
    """

    throttled: _Chance = NEVER
    """429, code 8."""
    wait: Wait = Wait.RESET
    wait_seconds: Annotated[float, Field(ge=0)] = 1.0
    """Seconds that a 429 asks to wait, rounded up to whole seconds in the answer."""
    server_error: _Chance = NEVER
    """500."""
    unavailable: _Chance = NEVER
    """503, code 4197."""
    slow: _Chance = NEVER
    """Processed at once, answered late: a caller that gives up does not know that it was accepted."""
    slow_seconds: Annotated[float, Field(ge=0)] = 1.0
    dropped_before: _Chance = NEVER
    """The connection is cut and nothing is processed."""
    dropped_after: _Chance = NEVER
    """The connection is cut instead of an answer: the events are recorded, but the caller cannot know."""
    unauthorised: _Chance = NEVER
    """401, code 2, although the token is valid."""
    forbidden_accounts: frozenset[str] = frozenset()
    """403, code 29."""
    unknown_accounts: frozenset[str] = frozenset()
    """404."""
    middleman: _Chance = NEVER
    """A proxy, a firewall or a login page answers in place of Pinterest, which the call does not reach."""
    middleman_status: Annotated[int, Field(ge=200, le=599)] = 403
    middleman_says: Speech = Speech.HTML
    marker: Annotated[str, Field(min_length=1)] | None = None
    """An event whose ``event_id`` contains this is refused as `marked` says."""
    marked: Marked = Marked.BAD_REQUEST
    max_body_bytes: Annotated[int, Field(ge=1)] | None = None
    """Larger bodies get a 413 from a proxy, which is not JSON."""
    lying: _Chance = NEVER
    lie: Lie = Lie.NOT_JSON
    warned: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of events processed with a ``warning_message``."""
    calls_per_minute: Annotated[int, Field(ge=1)] | None = 5000
    """The quota of each ad account, enforced and shown in the headers; None: neither."""
    echo: bool = False
    """Like Pinterest, a 401 may repeat the token, and error messages may repeat the invalid value."""


DEMO_FAULTS: Final = Faults(
    throttled=Chance(share=0.03),
    wait_seconds=1.0,
    server_error=Chance(share=0.02),
    unavailable=Chance(share=0.02),
    slow=Chance(share=0.05),
    slow_seconds=1.0,
    dropped_before=Chance(share=0.015),
    dropped_after=Chance(share=0.015),
    middleman=Chance(share=0.01),
)
"""For ``pinstream demo --faults``: every kind of fault that loses and refuses no event."""

_FAULTS: Final = TypeAdapter(Faults)


def faults_from_json(body: bytes) -> Faults:
    """Reads ``POST /sandbox/faults``. A chance is an object, or a number that is the share.

    Raises ``ValueError`` (pydantic's), which names each invalid member.
    """
    return _FAULTS.validate_json(body)


def faults_as_json(faults: Faults) -> dict[str, Any]:
    """Inverse of `faults_from_json`: returns values for JSON."""
    dumped: dict[str, Any] = _FAULTS.dump_python(faults, mode="json")
    return dumped


class CallPlan(NamedTuple):
    """The faults of one call, decided when it arrives."""

    faults: Faults
    unauthorised: bool
    throttled: bool
    unavailable: bool
    server_error: bool
    dropped_before: bool
    dropped_after: bool
    middleman: bool
    delay: float
    lie: Lie | None
    random: random.Random
    """Source of the random numbers for single events."""


_CHANCES: Final = (
    "unauthorised",
    "throttled",
    "unavailable",
    "server_error",
    "dropped_before",
    "dropped_after",
    "slow",
    "lying",
    "middleman",
)


class FaultSource:
    """Draws a `CallPlan` for each call since the faults were set."""

    def __init__(self, faults: Faults, *, seed: int, now: float) -> None:
        self.faults = faults
        self._seed = seed
        self._since = now
        self._calls = 0

    def next_plan(self, now: float) -> CallPlan:
        """Return the plan of the call that arrives at `now` (seconds of the sandbox's clock)."""
        call, self._calls = self._calls, self._calls + 1
        draws = random.Random(f"{self._seed}:{call}")  # noqa: S311  faults are not secrets
        faults, elapsed = self.faults, now - self._since
        struck = {name: getattr(faults, name).strikes(call, elapsed, draws.random()) for name in _CHANCES}
        slow, lying = struck.pop("slow"), struck.pop("lying")
        return CallPlan(
            faults=faults,
            delay=faults.slow_seconds if slow else 0.0,
            lie=faults.lie if lying else None,
            random=draws,
            **struck,
        )


class Quota:
    """The quota of one ad account, in fixed windows of a minute that start with a call."""

    def __init__(self) -> None:
        self._opened = -math.inf
        self._used = 0

    def take(self, limit: int, now: float) -> tuple[bool, Mapping[str, str]]:
        """Count a call. Return whether it is within `limit` per minute, and the rate-limit headers."""
        if not 0 <= now - self._opened < _WINDOW:
            self._opened, self._used = now, 0
        within = self._used < limit
        self._used += within
        return within, _ratelimit(limit, limit - self._used, self._opened + _WINDOW - now)


def wait_headers(faults: Faults, now: float) -> Mapping[str, str]:
    """Return the headers in which a 429 from `Faults.throttled` says when to try again."""
    seconds = math.ceil(faults.wait_seconds)
    match faults.wait:
        case Wait.RESET:
            return _ratelimit(faults.calls_per_minute or 5000, 0, seconds)
        case Wait.SECONDS:
            return {"Retry-After": str(seconds)}
        case Wait.DATE:
            return {"Retry-After": formatdate(math.ceil(now + faults.wait_seconds), usegmt=True)}
        case Wait.NONE:
            return {}


def _ratelimit(limit: int, remaining: int, reset: float) -> Mapping[str, str]:
    return {
        "x-ratelimit-limit": str(limit),
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset": str(math.ceil(reset)),
    }
