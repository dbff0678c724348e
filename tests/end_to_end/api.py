"""The API that the processes under test talk to: the sandbox, in a thread of this process, and it remembers bodies.

Being here, tests read its counts directly and change its faults while a pipeline runs against it. What is kept of
every call is its body, so that each payload can be held against the schema of the request afterwards.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

import orjson
from aiohttp import web

from consumer.demo.accounts import SandboxCounts
from consumer.demo.api import Sandbox
from consumer.demo.faults import Faults
from tests.adapters import fake_registry
from tests.demo.examples import SENT
from tests.end_to_end.processes import TOKEN

_Result = TypeVar("_Result")


class _Recording(Sandbox):
    """The sandbox, which also keeps the bodies it received."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.bodies: list[bytes] = []
        self.queries: list[str] = []

    async def _events(self, request: web.Request) -> web.Response:
        body = await request.read()
        if body != b'{"data":[]}':  # which only asks for the time
            self.bodies.append(body)
            self.queries.append(request.query_string)
        return await super()._events(request)


class Loop:
    """An event loop in a thread of its own, for servers that must answer while the test waits."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="end-to-end-servers", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Run `work` in that thread until it is done."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        """End the thread and whatever still runs in it (such as answers whose callers have gone)."""
        self.call(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


async def _cancel_all() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class Api:
    """One sandbox on a port of its own; a context manager. `options` are those of `Sandbox`."""

    def __init__(self, loop: Loop, **options: Any) -> None:
        self._loop = loop
        self._sandbox = _Recording(**{"token": TOKEN, **options})
        self.url = ""

    def __enter__(self) -> Self:
        self.url = self._loop.call(self._sandbox.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call(self._sandbox.stop())

    def set_faults(self, **faults: Any) -> None:
        """From now on misbehave in these ways; in none if none is given."""

        async def change() -> None:
            self._sandbox.set_faults(Faults(**faults))

        self._loop.call(change())

    def set_token(self, token: str) -> None:
        """From now on accept only this token."""

        async def change() -> None:
            self._sandbox.token = token

        self._loop.call(change())

    def counts(self) -> SandboxCounts:
        """What the sandbox has counted so far."""

        async def read() -> SandboxCounts:
            return self._sandbox.counts()

        return self._loop.call(read())

    def accepted(self) -> Counter[str]:
        """How often each event id was accepted."""

        async def read() -> Counter[str]:
            return Counter({key.event_id: times for key, times in self._sandbox.memory.deliveries.items()})

        return self._loop.call(read())

    def pairs(self) -> list[tuple[str, str]]:
        """Account and event id of each accepted event."""

        async def read() -> list[tuple[str, str]]:
            return [(key.account, key.event_id) for key in self._sandbox.memory.deliveries]

        return self._loop.call(read())

    @property
    def calls(self) -> int:
        """How many calls came, whatever their answer."""
        return len(self._sandbox.bodies)

    @property
    def queries(self) -> list[str]:
        """The query string of every call."""
        return list(self._sandbox.queries)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every event of every call, with repetitions."""
        return [event for body in list(self._sandbox.bodies) for event in orjson.loads(body)["data"]]

    def sent_by(self, partner: str) -> set[str]:
        """The ids of all events that came from this partner, by their own word."""
        return {event["event_id"] for event in self.events if event.get("partner_name") == partner}

    def check_payloads(self) -> int:
        """Hold every body that came against the schema of the request; how many different events there were.

        What was sent again is the same text and is looked at once.
        """
        events: set[bytes] = set()
        for body in list(self._sandbox.bodies):
            document = orjson.loads(body)
            assert list(document) == ["data"]
            assert 1 <= len(document["data"]) <= 1000
            events.update(orjson.dumps(event) for event in document["data"])
        for event in events:
            SENT.validate({"data": [orjson.loads(event)]})
        return len(events)


class Registry:
    """A schema registry that can fail, stop, and start again at the same address; a context manager."""

    def __init__(self, loop: Loop, credentials: str | None = None) -> None:
        self._loop = loop
        self._registry = fake_registry.FakeRegistry(credentials=credentials)
        self.url = ""

    def __enter__(self) -> Self:
        self._loop.call(self._registry.start())
        self.url = self._registry.url
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call(self._registry.stop())

    def add(self, subject: str, schema: Any) -> int:
        """Register a schema (JSON) and return its id."""

        async def change() -> int:
            return self._registry.add(subject, orjson.dumps(schema).decode()).schema_id

        return self._loop.call(change())

    def down(self) -> None:
        """From now on refuse connections."""
        self._loop.call(self._registry.stop())

    def lose_all(self) -> None:
        """Lose the database: schemas that are registered from now on get the first ids again."""

        async def change() -> None:
            self._registry.lose_all()

        self._loop.call(change())

    def up(self) -> None:
        """Listen again at the same address, with all registered schemas."""
        self._loop.call(self._registry.start())

    def set_faults(self, **faults: Any) -> None:
        """From now on misbehave in these ways; in none if none is given."""

        async def change() -> None:
            self._registry.faults = fake_registry.Faults(**faults)

        self._loop.call(change())

    def set_contexts(self, *names: str) -> None:
        """Have these contexts besides the default one, all of them empty."""

        async def change() -> None:
            self._registry.contexts = names

        self._loop.call(change())

    def set_credentials(self, credentials: str | None) -> None:
        """From now on require this ``user:password`` of every request."""

        async def change() -> None:
            self._registry.credentials = credentials

        self._loop.call(change())

    @property
    def requests(self) -> list[str]:
        """The paths it was asked for, in order."""
        return list(self._registry.requests)
