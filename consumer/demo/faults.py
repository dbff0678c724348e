"""How the sandbox misbehaves: declared as a frozen `Faults`, drawn by a small machine, `FaultSource`.

What happens to a call depends only on the seed, the number of the call since the faults were set, and (for
what is said in seconds or per minute) the clock it is given: so a run can be repeated. Every kind of fault
draws its own random number for every call, so changing one kind does not move the others.

The order in which a call meets them is that of the real thing: a proxy that cuts the connection, finds the
body too large or answers by itself, then the token, the account, the rate limit, the service's health, then
what is in the call, and last what happens to the answer on its way back.
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
    """When a fault strikes: on the first calls or for the first seconds after it was set, then by a share."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    first: Annotated[int, Field(ge=0)] = 0
    """So many calls."""
    seconds: Annotated[float, Field(ge=0)] = 0.0

    def strikes(self, call: int, elapsed: float, draw: float) -> bool:
        """For call number `call` (from 0), `elapsed` seconds after setting, `draw` uniform in [0, 1)."""
        return call < self.first or elapsed < self.seconds or draw < self.share


NEVER: Final = Chance()


class Wait(Enum):
    """How a 429 says when to come back."""

    RESET = "reset"
    """``x-ratelimit-reset``, as documented."""
    SECONDS = "seconds"
    """``Retry-After`` in seconds."""
    DATE = "date"
    """``Retry-After`` as an HTTP date, rounded up to whole seconds."""
    NONE = "none"
    """Not at all."""


class Marked(Enum):
    """What becomes of a call that contains a marked event."""

    BAD_REQUEST = "400"
    """400 without saying which; nothing is recorded."""
    UNPROCESSABLE = "422"
    """422 whose details say nothing; nothing is recorded."""
    DETAILED = "422_details"
    """422 whose details are one verdict per event; the others are recorded."""
    FAILED = "failed"
    """200, that event failed, the others recorded."""


class Lie(Enum):
    """What a lying answer looks like. The events were recorded all the same."""

    NOT_JSON = "not_json"
    WRONG_COUNT = "wrong_count"
    """One entry too few in ``events``."""
    CONTRADICTION = "contradiction"
    """The counter of processed events is not that of the entries."""
    PROCESSED_WITH_ERROR = "processed_with_error"
    """Processed, with an ``error_message``."""


class Speech(Enum):
    """What a middleman's answer looks like: never like the platform's."""

    HTML = "html"
    """A page of its own."""
    EMPTY = "empty"
    JSON = "json"
    """A gateway's JSON."""
    ECHO = "echo"
    """A page that repeats the token and the body."""


def _as_chance(value: object) -> object:
    return {"share": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


_Chance = Annotated[Chance, BeforeValidator(_as_chance)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Faults:
    """All the misbehaviour that can be had; the default is none. Times in seconds, sizes in bytes.

    Raises ``pydantic.ValidationError`` (a ``ValueError``) for what cannot be.
    """

    throttled: _Chance = NEVER
    """429, code 8."""
    wait: Wait = Wait.RESET
    wait_seconds: Annotated[float, Field(ge=0)] = 1.0
    """What a 429 asks to wait; whole seconds go out, rounded up."""
    server_error: _Chance = NEVER
    """500."""
    unavailable: _Chance = NEVER
    """503, code 4197."""
    slow: _Chance = NEVER
    """Processed at once, answered late: a caller that gives up does not know it was accepted."""
    slow_seconds: Annotated[float, Field(ge=0)] = 1.0
    dropped_before: _Chance = NEVER
    """The connection is cut, nothing was processed."""
    dropped_after: _Chance = NEVER
    """The connection is cut instead of the answer: the events are recorded, the caller cannot know."""
    unauthorised: _Chance = NEVER
    """401, code 2, although the token is right."""
    forbidden_accounts: frozenset[str] = frozenset()
    """403, code 29."""
    unknown_accounts: frozenset[str] = frozenset()
    """404."""
    middleman: _Chance = NEVER
    """A proxy, a firewall or a login page answers in the platform's place; nothing reaches that."""
    middleman_status: Annotated[int, Field(ge=200, le=599)] = 403
    middleman_says: Speech = Speech.HTML
    marker: Annotated[str, Field(min_length=1)] | None = None
    """An event whose ``event_id`` contains this is refused as `marked` says."""
    marked: Marked = Marked.BAD_REQUEST
    max_body_bytes: Annotated[int, Field(ge=1)] | None = None
    """413 above it, answered by a proxy: not JSON."""
    lying: _Chance = NEVER
    lie: Lie = Lie.NOT_JSON
    warned: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of events processed with a ``warning_message``."""
    calls_per_minute: Annotated[int, Field(ge=1)] | None = 5000
    """The quota of each ad account, kept and announced in the headers; None: neither."""
    echo: bool = False
    """As the platform may: a 401 repeats the token, error messages repeat the offending value."""


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
"""For ``pinstream demo --faults``: every kind that can be survived without losing or refusing an event."""

_FAULTS: Final = TypeAdapter(Faults)


def faults_from_json(body: bytes) -> Faults:
    """Reads ``POST /sandbox/faults``. A chance is an object, or just a number: the share.

    Raises ``ValueError`` (pydantic's) naming each member that cannot be.
    """
    return _FAULTS.validate_json(body)


def faults_as_json(faults: Faults) -> dict[str, Any]:
    """The inverse of `faults_from_json`, as JSON-ready values."""
    dumped: dict[str, Any] = _FAULTS.dump_python(faults, mode="json")
    return dumped


class Plan(NamedTuple):
    """What one call will meet; it is decided when the call arrives."""

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
    """For what is drawn per event."""


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
    """Draws a `Plan` for each call under the faults in force, counting from when they were set."""

    def __init__(self, faults: Faults, *, seed: int, now: float) -> None:
        self.faults = faults
        self._seed = seed
        self._since = now
        self._calls = 0

    def next_plan(self, now: float) -> Plan:
        """The plan of the call that arrives at `now` (seconds on the sandbox clock)."""
        call, self._calls = self._calls, self._calls + 1
        draws = random.Random(f"{self._seed}:{call}")  # noqa: S311  faults are not secrets
        faults, elapsed = self.faults, now - self._since
        struck = {name: getattr(faults, name).strikes(call, elapsed, draws.random()) for name in _CHANCES}
        slow, lying = struck.pop("slow"), struck.pop("lying")
        return Plan(
            faults=faults,
            delay=faults.slow_seconds if slow else 0.0,
            lie=faults.lie if lying else None,
            random=draws,
            **struck,
        )


class Quota:
    """One ad account's calls per minute, in fixed windows that start with the first call."""

    def __init__(self) -> None:
        self._opened = -math.inf
        self._used = 0

    def take(self, limit: int, now: float) -> tuple[bool, Mapping[str, str]]:
        """Whether the call is within `limit` a minute, and the headers that tell where the account stands."""
        if not 0 <= now - self._opened < _WINDOW:
            self._opened, self._used = now, 0
        within = self._used < limit
        self._used += within
        return within, _ratelimit(limit, limit - self._used, self._opened + _WINDOW - now)


def wait_headers(faults: Faults, now: float) -> Mapping[str, str]:
    """The headers by which a 429 from `Faults.throttled` says when to come back."""
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
