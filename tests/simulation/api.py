"""The Conversions API of a world: what it processes, and what it then says of it, which is not always the same.

Theory of operation. `process` is one call at the moment it reaches the API. What is processed is entered in the
truth at once; if the answer then carries no verdict, one more acceptance of those keys is excused. A bad event is
always refused, alone or with its whole call. A lying answer is one that reads as a success at first sight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from email.utils import formatdate
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from consumer.engine.messages import Send
from tests.simulation.records import RecordKind, Spec
from tests.simulation.truth import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


class Says(Enum):
    """What an answer says to the caller."""

    EVENTS = "one outcome per event"
    REFUSED = "the batch, or some of it, is refused"
    LARGE = "too large"
    HALT = "this token or account is refused"
    THROTTLE = "too many calls"
    NOTHING = "no verdict"


class Reply(NamedTuple):
    """An answer. `status` 0: none comes, `reason` says why.

    `wait`: the seconds a 429 asks for; `until`: the moment it names, in unix seconds; None: it does not.
    """

    says: Says
    status: int
    headers: dict[str, str]
    body: bytes
    reason: str = ""
    wait: float | None = None
    until: float | None = None


_FAR_OFF = 20 * 86_400
"""Seconds by which one server's clock is behind."""


def _without_time(event: dict[str, Any]) -> dict[str, Any]:
    """The event without its time: a time slightly ahead is sent as the present."""
    return {name: value for name, value in event.items() if name != "event_time"}


class Api:
    """All ad accounts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._has_answered = False
        """Whether any answer so far was the platform's own: the first one comes from a server whose clock is wrong."""
        self._lies: Sequence[Callable[[list[Spec]], tuple[list[Spec], bytes]]] = (
            self._lie_not_json,
            self._lie_short,
            self._lie_counters,
            self._lie_boolean,
            self._lie_unknown_status,
        )

    def process(self, send: Send) -> Reply:
        """One call."""
        return self._dated(self._turn_away(send) or self._judge(send, self.read(send)))

    def date(self) -> Reply:
        """One call without an event."""
        lost = self._world.in_spell("api") or self._world.roll(self._world.rates.api_lost_before)
        return self._dated(
            self._nothing() if lost else Reply(Says.HALT, 401, {}, b'{"code":2,"message":"no"}')
        )

    def _dated(self, reply: Reply) -> Reply:
        own = reply.says in (Says.EVENTS, Says.REFUSED, Says.LARGE, Says.HALT)
        # Who answers in the platform's place has a clock of its own.
        moment = self._world.wall + (0 if own else self._world.random.choice((-86_400, 86_400)))
        if own and not self._has_answered:
            self._has_answered = True
            moment -= _FAR_OFF
        return reply._replace(headers={**reply.headers, "date": formatdate(moment, usegmt=True)})

    def read(self, send: Send) -> list[Spec]:
        """The records behind a call's events; each event must be exactly what the converter made."""
        specs = []
        for event in orjson.loads(send.body)["data"]:
            spec = self._world.specs[self._world.form.number(event)]
            if _without_time(event) != _without_time(spec.payload):
                raise Violation("an event never changes", f"{spec} was sent as {event}")
            specs.append(spec)
        return specs

    # -- calls that get nowhere

    def _turn_away(self, send: Send) -> Reply | None:
        world = self._world
        if world.in_spell("api") or world.roll(world.rates.api_lost_before):
            return self._nothing()
        if world.roll(world.rates.api_stranger):
            return self._stranger(world.random.choice((400, 401, 403, 404, 422)))
        if world.faulty and len(send.body) > world.knobs.proxy_limit:
            return self._stranger(413)
        if world.in_spell("token"):
            return Reply(Says.HALT, 401, {}, b'{"code":2,"message":"no"}')
        if world.in_spell(f"account {send.account}"):
            return Reply(Says.HALT, world.random.choice((403, 404)), {}, b'{"code":29,"message":"no"}')
        if world.roll(world.rates.api_429):
            return self._throttle()
        if len(send.body) > world.knobs.body_limit:
            return Reply(Says.LARGE, 413, {}, b'{"code":1,"message":"too large"}')
        return None

    def _stranger(self, status: int) -> Reply:
        """An answer that is not the platform's: whatever it says, it knows nothing about events or tokens."""
        bodies = (
            b"",
            b"<html>no</html>",
            b'{"message":"no"}',
            b'{"code":"E1","message":"no"}',
            b'{"code":7}',
        )
        return Reply(Says.NOTHING, status, {}, self._world.random.choice(bodies))

    def _nothing(self) -> Reply:
        random = self._world.random
        status = random.choice((0, 0, 500, 502, 503, 504, 302, 418))
        return Reply(
            Says.NOTHING, status, {}, b"oops", random.choice(("timeout", "connection", "dns", "tls"))
        )

    def _throttle(self) -> Reply:
        world = self._world
        wait = world.random.uniform(0.2, 6)
        kind = world.random.randrange(5)
        headers: dict[str, str] = {}
        until = None
        if kind == 0:
            headers = {"x-ratelimit-reset": f"{wait}", "retry-after": "77"}
        elif kind == 1:
            headers = {"retry-after": f"{wait}"}
        elif kind == 2:
            # A date has whole seconds; how long that is from now the reader finds by its own clock.
            until = float(int(world.wall + wait))
            headers = {"retry-after": formatdate(until, usegmt=True)}
        elif kind == 3:
            headers = {"x-ratelimit-limit": "5", "x-ratelimit-remaining": "0", "x-ratelimit-reset": f"{wait}"}
        seconds = wait if kind in (0, 1, 3) else None
        return Reply(Says.THROTTLE, 429, headers, b"", wait=seconds, until=until)

    # -- calls that are looked at

    def _judge(self, send: Send, specs: list[Spec]) -> Reply:
        world, rates = self._world, self._world.rates
        bad = [spec for spec in specs if spec.kind is not RecordKind.GOOD]
        if bad and world.random.random() < rates.api_whole_batch:
            return self._refuse_whole(specs)
        if world.roll(rates.api_lie):
            processed, body = world.random.choice(self._lies)(specs)
            self._process(processed, reported=False)
            return Reply(Says.NOTHING, 200, {}, body)
        if world.roll(rates.api_lost_after):
            self._process(specs, reported=False)
            return Reply(Says.NOTHING, 0, {}, b"", "timeout")
        if world.roll(rates.api_5xx):
            self._process(specs[: world.random.randint(0, len(specs))], reported=False)
            return Reply(Says.NOTHING, 503, {}, b'{"code":4197}')
        self._process(specs, reported=True)
        return Reply(Says.EVENTS, 200, self._limits(), self._outcomes(specs))

    def _process(self, specs: Sequence[Spec], *, reported: bool) -> None:
        truth = self._world.truth
        good = [spec for spec in specs if spec.kind is RecordKind.GOOD]
        for spec in good:
            truth.accept(spec)
        if not reported:
            truth.excuse(spec.key for spec in good)

    def _limits(self) -> dict[str, str]:
        world = self._world
        if not world.roll(world.rates.api_limit_headers):
            return {"x-pinterest-rid": "1"}
        remaining = world.random.choice((0, 0, 1, 3, 50))
        return {
            "x-ratelimit-remaining": str(remaining),
            "x-ratelimit-reset": str(world.random.uniform(0.1, 5)),
        }

    def _outcomes(self, specs: Sequence[Spec]) -> bytes:
        entries = [self._entry(spec) for spec in specs]
        good = sum(1 for entry in entries if entry["status"] == "processed")
        return orjson.dumps(
            {"events": entries, "num_events_received": len(specs), "num_events_processed": good}
        )

    def _entry(self, spec: Spec) -> dict[str, Any]:
        if spec.kind is not RecordKind.GOOD:
            return {
                "status": "failed",
                "error_message": f"event {spec.event_id} is bad",
                "warning_message": None,
            }
        odd = "odd, but well" if spec.number % 11 == 0 else ""
        return {"status": "processed", "error_message": odd, "warning_message": odd or None}

    def _refuse_whole(self, specs: Sequence[Spec]) -> Reply:
        """400 or 422: nothing is processed; the answer names the events at fault, or says nothing useful."""
        entries = [self._entry(spec) for spec in specs]
        answer: dict[str, Any] = {"code": 4196, "message": "the batch is bad"}
        manner = self._world.random.randrange(4)
        if manner == 0:
            answer["events"] = entries
        elif manner == 1:
            answer["details"] = {"events": entries}
        elif manner == 2:
            answer["details"] = ["data[0]", {"events": None}]
        elif manner == 3:
            answer["events"] = entries[:-1]
        return Reply(Says.REFUSED, 400 if manner else 422, {}, orjson.dumps(answer))

    # -- answers that must not be believed; each gives what was processed, and what is said

    def _lie_not_json(self, specs: list[Spec]) -> tuple[list[Spec], bytes]:
        return specs, self._outcomes(specs)[:-2]

    def _lie_short(self, specs: list[Spec]) -> tuple[list[Spec], bytes]:
        return specs[:-1], self._outcomes(specs[:-1])

    def _lie_counters(self, specs: list[Spec]) -> tuple[list[Spec], bytes]:
        processed = specs[: len(specs) // 2]
        answer = orjson.loads(self._outcomes(specs))
        # Never what the statuses say: a lie that agrees with itself can be told by nobody.
        answer["num_events_processed"] += self._world.random.choice((-1, 1))
        return processed, orjson.dumps(answer)

    def _lie_boolean(self, specs: list[Spec]) -> tuple[list[Spec], bytes]:
        answer = orjson.loads(self._outcomes(specs))
        answer["num_events_received"] = True
        return [], orjson.dumps(answer)

    def _lie_unknown_status(self, specs: list[Spec]) -> tuple[list[Spec], bytes]:
        answer = orjson.loads(self._outcomes(specs))
        answer["events"][-1]["status"] = "pending"
        return specs[:-1], orjson.dumps(answer)
