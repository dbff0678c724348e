"""The faults of the sandbox: a frozen `Faults` declares them, `draw_plan` draws those of each call.

The faults of a call depend only on the seed and the number of the call since the faults were set, so a run can be
repeated.

A call meets them in the order of the real system: a proxy that cuts the connection, refuses a large body or answers
itself; then the token, the account, the rate limit, the health of the service, the content of the call; and last the
way of the answer back.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

_CONFIG: Final = ConfigDict(extra="forbid")
_WINDOW: Final = 60.0


@dataclass(frozen=True, slots=True, config=_CONFIG)
class Chance:
    """When a fault occurs: on the first calls after it was set, then on a share of calls."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    first: Annotated[int, Field(ge=0)] = 0  # number of first calls


NEVER: Final = Chance()


# How a 429 says when to try again: in ``x-ratelimit-reset``, as documented, or in ``Retry-After``.
Wait = Literal["reset", "seconds"]
# The form of a middleman's answer, which never looks like Pinterest's: an HTML page, an empty body, the JSON of a
# gateway, or a page that repeats the token and the body.
Speech = Literal["html", "empty", "json", "echo"]


def _as_chance(value: object) -> object:
    # In JSON, a number alone is the share. (True is a number to Python.)
    return {"share": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


_Chance = Annotated[Chance, BeforeValidator(_as_chance)]


@dataclass(frozen=True, slots=True, kw_only=True, config=_CONFIG)
class Faults:
    """All possible faults; by default there are none. Times in seconds, sizes in bytes.

    Raises ``pydantic.ValidationError`` (a ``ValueError``) for invalid values.
    """

    throttled: _Chance = NEVER  # 429, code 8
    wait: Wait = "reset"
    # Seconds that a 429 asks to wait, rounded up to whole seconds in the answer.
    wait_seconds: Annotated[float, Field(ge=0)] = 1.0
    server_error: _Chance = NEVER  # 500
    unavailable: _Chance = NEVER  # 503, code 4197
    # Processed at once, answered late: a caller that gives up does not know that it was accepted.
    slow: _Chance = NEVER
    slow_seconds: Annotated[float, Field(ge=0)] = 1.0
    dropped_before: _Chance = NEVER  # the connection is cut and nothing is processed
    # The connection is cut instead of an answer: the events are recorded, but the caller cannot know.
    dropped_after: _Chance = NEVER
    unauthorised: _Chance = NEVER  # 401, code 2, although the token is valid
    forbidden_accounts: frozenset[str] = frozenset()  # 403, code 29
    # A proxy, a firewall or a login page answers in place of Pinterest, which the call does not reach.
    middleman: _Chance = NEVER
    middleman_status: Annotated[int, Field(ge=200, le=599)] = 403
    middleman_says: Speech = "html"
    marker: Annotated[str, Field(min_length=1)] | None = (
        None  # an event whose ``event_id`` contains this fails
    )
    # Larger bodies get a 413 from a proxy, which is not JSON.
    max_body_bytes: Annotated[int, Field(ge=1)] | None = None
    # The quota of each ad account, enforced and shown in the headers; None: neither.
    calls_per_minute: Annotated[int, Field(ge=1)] | None = 5000
    # Like Pinterest, a 401 may repeat the token, and error messages may repeat the invalid value.
    echo: bool = False


# For ``pinstream demo --faults``: every kind of fault that loses and refuses no event.
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

# ``POST /sandbox/faults`` and its answer as JSON. A chance is an object, or a number that is the share.
FAULTS: Final = TypeAdapter(Faults)


class CallPlan(NamedTuple):
    """The faults of one call, decided when it arrives."""

    faults: Faults
    random: random.Random  # for the id of its answer
    # Each of these draws one random number, in this order: another order would change the faults of a seed.
    unauthorised: bool
    throttled: bool
    unavailable: bool
    server_error: bool
    dropped_before: bool
    dropped_after: bool
    slow: bool
    middleman: bool


def draw_plan(faults: Faults, *, seed: int, call: int) -> CallPlan:
    """Draw the faults of call number `call` (from 0) since they were set."""
    draws = random.Random(f"{seed}:{call}")  # noqa: S311  faults are not secrets
    # Each kind draws its own number for every call, so that changing one kind does not change the others.
    struck = {}
    for name in CallPlan._fields[2:]:
        chance: Chance = getattr(faults, name)
        draw = draws.random()
        struck[name] = call < chance.first or draw < chance.share
    return CallPlan(faults, draws, **struck)


class SandboxQuota:
    """The quota of one ad account, in fixed windows of a minute that start with a call."""

    _opened, _used = -math.inf, 0

    def take(self, limit: int, now: float) -> tuple[bool, Mapping[str, str]]:
        """Count a call. Return whether it is within `limit` per minute, and the rate-limit headers."""
        # A clock that was set back opens a new window.
        if not 0 <= now - self._opened < _WINDOW:
            self._opened, self._used = now, 0
        within = self._used < limit
        # A refused call uses nothing: what remains must not become negative.
        self._used += within
        return within, _ratelimit(limit, limit - self._used, self._opened + _WINDOW - now)


def wait_headers(faults: Faults) -> Mapping[str, str]:
    """Return the headers in which a 429 from `Faults.throttled` says when to try again."""
    seconds = math.ceil(faults.wait_seconds)
    if faults.wait == "seconds":
        return {"Retry-After": str(seconds)}
    return _ratelimit(faults.calls_per_minute or 5000, 0, seconds)


def _ratelimit(limit: int, remaining: int, reset: float) -> Mapping[str, str]:
    return {
        "x-ratelimit-limit": str(limit),
        "x-ratelimit-remaining": str(remaining),
        "x-ratelimit-reset": str(math.ceil(reset)),
    }
