"""A schema registry in this process: the part of the Confluent REST API that pinstream uses, and its faults.

Bodies, codes and paths are those of the Schema Registry API reference: 40401 no such subject, 40402 no such
version, 40403 no such schema, 42201 invalid schema. `test_registry_contract` compares it with a
real registry. It starts on a loopback port of its own::

    async with FakeRegistry() as registry:
        registry.add("subject", schema_text)
        ... registry.url ...
"""

from __future__ import annotations

import asyncio
import json
import ssl
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from aiohttp import web

from consumer.avro.references import definitions, inlined
from consumer.avro.schema import parse


class StoredSchema(NamedTuple):
    """A schema as registered."""

    schema_id: int
    guid: str
    subject: str
    version: int
    text: str
    kind: str
    references: list[dict[str, Any]]


@dataclass
class Faults:
    """The faults of every answer, until they are reset."""

    status: int | None = None
    """Answer with this status and the registry's own error body."""
    body: bytes | None = None
    """Answer with these bytes (and `status`, else 200), which no registry would send."""
    coding: str | None = None
    """With `body`: the answer's ``Content-Encoding``."""
    endless: bool = False
    """Answer with zeros (after `body`, if set) for as long as the client reads."""
    hang: bool = False
    """Accept the request and never answer."""
    drop: bool = False
    """Accept the request and close the connection."""


@dataclass
class FakeRegistry:
    """The registry, an async context manager; `requests` are the paths requested, in order."""

    faults: Faults = field(default_factory=Faults)
    requests: list[str] = field(default_factory=list)
    sent: int = 0
    """Bytes of an endless answer that the client has read or that are on their way."""
    credentials: str | None = None
    """If set, the ``user:password`` that every request needs."""
    tls: ssl.SSLContext | None = None
    contexts: tuple[str, ...] = ()
    """Contexts besides the default one; all of them are empty here (``/contexts/<name>``)."""
    _stored: list[StoredSchema] = field(default_factory=list)
    _deleted: set[tuple[str, int]] = field(default_factory=set)
    """Subjects and versions that were deleted softly."""
    _runner: web.AppRunner | None = None
    url: str = ""
    host: str = "127.0.0.1"
    _port: int = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def start(self) -> None:
        """Start: the first time on a free port, after `stop` on the same one with the same schemas."""
        app = web.Application(middlewares=[self._misbehave])
        app.router.add_get("/schemas/ids/{id}", self._by_id)
        app.router.add_get("/schemas/guids/{guid}", self._by_guid)
        app.router.add_get("/subjects/{subject}/versions/{version}", self._by_version)
        app.router.add_post("/subjects/{subject}/versions", self._register)
        app.router.add_delete("/subjects/{subject}", self._delete)
        app.router.add_get("/contexts", self._list_contexts)
        app.router.add_get("/contexts/{context}/schemas/ids/{id}", self._in_context)
        app.router.add_get("/contexts/{context}/subjects/{subject}/versions/{version}", self._in_context)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self._port, ssl_context=self.tls)
        await site.start()
        self._port = self._runner.addresses[0][1]
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "http" if self.tls is None else "https"
        self.url = f"{scheme}://{host}:{self._port}"

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop, so that connections are refused."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def add(
        self, subject: str, text: str, *, kind: str = "AVRO", references: list[dict[str, Any]] | None = None
    ) -> StoredSchema:
        """Register any `text`. The same text under another subject is another version of the same schema."""
        content = (text, kind, references or [])
        alike = [one for one in self._stored if (one.text, one.kind, one.references) == content]
        for stored in alike:
            if stored.subject == subject and (subject, stored.version) not in self._deleted:
                return stored
        version = 1 + sum(stored.subject == subject for stored in self._stored)
        number = alike[0].schema_id if alike else 1 + max((one.schema_id for one in self._stored), default=0)
        guid = str(uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(content)))
        self._stored.append(StoredSchema(number, guid, subject, version, *content))
        return self._stored[-1]

    def lose_all(self) -> None:
        """Drop all schemas, as after the loss of the registry's database."""
        self._stored.clear()

    @web.middleware
    async def _misbehave(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append(request.path)
        faults = self.faults
        if faults.hang:
            await asyncio.Event().wait()
        if faults.drop and request.transport is not None:
            request.transport.abort()
        packed = {} if faults.coding is None else {"Content-Encoding": faults.coding}
        if faults.endless:
            return await self._answer_indefinitely(request, faults.body or b"", packed)
        if faults.body is not None:
            return web.Response(status=faults.status or 200, body=faults.body, headers=packed)
        if faults.status is not None:
            return _error(faults.status, faults.status * 100 + 1, "out of order")
        if not self._let_in(request):
            return _error(401, 401, "Unauthorized")
        try:
            response: web.StreamResponse = await handler(request)
        except web.HTTPNotFound:
            return _error(404, 404, "HTTP 404 Not Found")
        return response

    async def _answer_indefinitely(
        self, request: web.Request, start: bytes, headers: dict[str, str]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(start)
        while True:
            await response.write(bytes(64 * 1024))
            self.sent += 64 * 1024

    def _let_in(self, request: web.Request) -> bool:
        if self.credentials is None:
            return True
        from aiohttp import encode_basic_auth

        user, _, password = self.credentials.partition(":")
        return request.headers.get("Authorization") == encode_basic_auth(user, password)

    async def _by_id(self, request: web.Request) -> web.Response:
        wanted = request.match_info["id"]
        if int(wanted) >= 2**31:  # registries in Java (Confluent's, Apicurio's) answer such a path with 404
            raise web.HTTPNotFound
        return self._answer([stored for stored in self._stored if str(stored.schema_id) == wanted])

    async def _by_guid(self, request: web.Request) -> web.Response:
        wanted = request.match_info["guid"]
        return self._answer([stored for stored in self._stored if stored.guid == wanted])

    def _answer(self, found: list[StoredSchema]) -> web.Response:
        if not found:
            return _error(404, 40403, "Schema not found")
        return web.json_response(_body(found[0]))

    async def _by_version(self, request: web.Request) -> web.Response:
        subject, version = request.match_info["subject"], request.match_info["version"]
        deleted = set() if request.query.get("deleted") == "true" else self._deleted
        of_subject = [one for one in self._stored if one.subject == subject and one[2:4] not in deleted]
        if not of_subject:
            return _error(404, 40401, f"Subject '{subject}' not found.")
        found = [one for one in of_subject if version in (str(one.version), "latest")][-1:]
        if not found:
            return _error(404, 40402, f"Version {version} not found.")
        return web.json_response({**_body(found[0]), "subject": subject, "version": found[0].version})

    async def _register(self, request: web.Request) -> web.Response:
        body = await request.json()
        kind, references = body.get("schemaType", "AVRO"), body.get("references") or []
        try:
            if kind == "AVRO":
                parse(inlined(json.loads(body["schema"]), definitions(self._referred(references))))
        except ValueError:
            return _error(422, 42201, "Invalid schema")
        stored = self.add(request.match_info["subject"], body["schema"], kind=kind, references=references)
        return web.json_response({"id": stored.schema_id, "version": stored.version, "guid": stored.guid})

    def _referred(self, references: list[dict[str, Any]]) -> Iterator[Any]:
        """Yield all schemas that `references` name, directly or not. Raises `ValueError` if one does not exist."""
        for reference in references:
            at = (reference["subject"], reference["version"])
            found = [one for one in self._stored if one[2:4] == at and at not in self._deleted]
            if not found:
                raise ValueError(f"no {at}")
            yield json.loads(found[0].text)
            yield from self._referred(found[0].references)

    async def _delete(self, request: web.Request) -> web.Response:
        subject = request.match_info["subject"]
        there = [one for one in self._stored if one[2:4] not in self._deleted]
        versions = [one.version for one in there if one.subject == subject]
        if not versions:
            return _error(404, 40401, f"Subject '{subject}' not found.")
        self._deleted.update((subject, version) for version in versions)
        return web.json_response(versions)

    async def _list_contexts(self, _: web.Request) -> web.Response:
        return web.json_response([".", *self.contexts])

    async def _in_context(self, request: web.Request) -> web.Response:
        return _error(404, 40401 if "subject" in request.match_info else 40403, "Not found")


def _body(stored: StoredSchema) -> dict[str, Any]:
    """Return a registry's answer for a schema: the type is omitted for Avro, references if there are none."""
    body: dict[str, Any] = {"schema": stored.text, "id": stored.schema_id, "guid": stored.guid}
    if stored.kind != "AVRO":
        body["schemaType"] = stored.kind
    if stored.references:
        body["references"] = stored.references
    return body


def _error(status: int, code: int, message: str) -> web.Response:
    return web.json_response({"error_code": code, "message": message}, status=status)
