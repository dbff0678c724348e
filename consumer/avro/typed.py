"""Records of several types: which of our schemas each is read as.

Theory of operation. A record type is the full name of the record in its writer's schema. A *choice* (the sections of
the mapping file) knows for each type and topic which of our schemas is meant, or why none is. It is asked once for
each writer's schema and topic. The answer, a *route*, is kept under the framing: the leading bytes that name the
schema. A writer's schema may be a union of record types. Then the datum begins with the number of a branch, which
belongs to the framing, so that records of one branch that follow each other have equal leading bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from consumer.avro.decode import AnyDecoder, DecodeCode, Found, WireFormat, describe, framing_of, rejected
from consumer.avro.paths import ALL, Asked, AvroSchema
from consumer.avro.plan import Plan, trimmed
from consumer.avro.reading import read_length
from consumer.avro.resolution import Incompatible, resolve
from consumer.avro.schema import (
    AvroType,
    InvalidSchema,
    Json,
    Union,
    branches_of,
    fingerprint,
    label,
    parse,
    require_bounded,
)
from consumer.engine.model import Filtered, Record, Rejection, SchemaRef


class Ours(Protocol):
    """What records of one type are read as."""

    @property
    def schema(self) -> AvroSchema:
        """Our schema."""

    @property
    def asked(self) -> Asked:
        """The paths whose values are used."""


class Choice(Protocol):
    """Which of our schemas a record is read as."""

    @property
    def all(self) -> Sequence[Ours]:
        """All of them; each has its place here as its number, counted from 1."""

    @property
    def records(self) -> Sequence[str]:
        """The full names of the record types that are read."""

    def choose(self, name: str, topic: str | None) -> int | Rejection | Filtered:
        """Return the number for records of this type on a topic (None: of no topic), or why there is none.

        `name` is the full name in the writer's schema, or another type's name if it is no record.
        """

    def knows(self, name: str) -> bool:
        """Return whether records of this type are read on some topic."""


class Route(NamedTuple):
    """How records of one type on one topic are read, or why they are not; and the number of our schema, 0: none."""

    plan: Plan | Rejection | Filtered
    number: int


class TypedDecoder(AnyDecoder):
    """Reads records of several types, each in the shape of our schema for its type.

    With `whole`, all of a record is read, and not only what is asked for.
    """

    def __init__(
        self, choice: Choice, *, wire_format: WireFormat = WireFormat.AUTO, whole: bool = False
    ) -> None:
        self._choice = choice
        self._whole = whole
        self._ours = [parse(ours.schema) for ours in choice.all]
        # By framing, the types that the writer's schema has: more than one, or none, only if it is a union.
        self._writers: dict[bytes, AvroType] = {}
        # By framing and topic. A union has a route for each branch.
        self._routes: dict[tuple[bytes, str], Route | tuple[Route, ...]] = {}
        # By framing, branch and number: sections of several topics share a plan.
        self._resolved: dict[tuple[bytes, int, int], Plan | Rejection] = {}
        super().__init__(wire_format)
        # What we write ourselves in single-object encoding needs no look-up.
        for node in self._ours:
            resolve(node, node)  # a default that does not fit its type is an error now
            self._learn(framing_of(SchemaRef("fingerprint", fingerprint(node))), node)

    def find(self, record: Record, value: bytes, topic: str) -> Found:
        """See `AnyDecoder.find`."""
        framing, start = self.split(record, value)
        route = self._routes.get((framing, topic))
        if route is None:
            writer = self._writers.get(framing)
            if writer is None:
                return Found(framing, start, None, 0)
            routes = [self._branch(framing, at, node, topic) for at, node in enumerate(branches_of(writer))]
            route = tuple(routes) if isinstance(writer, Union) else routes[0]
            self._routes[framing, topic] = route
        if isinstance(route, Route):
            return Found(framing, start, *route)
        try:
            branch, begin = read_length(value, start)
            chosen = route[branch]
        except Exception as error:  # whatever hostile bytes provoke is this record's verdict
            message = f"the bytes are not a datum of {describe(framing)} ({type(error).__name__})"
            return Found(framing, start, rejected(DecodeCode.UNDECODABLE, message), 0)
        # The branch belongs to the framing, but where a header names the schema.
        return Found(value[:begin] if start else framing, begin, *chosen)

    def _learn(self, framing: bytes, writer: AvroType) -> None:
        require_bounded(writer)
        # It may have been another schema before, as when the folder held another file.
        self._unlearn(framing)
        self._writers[framing] = writer

    def _unlearn(self, framing: bytes) -> None:
        self._writers.pop(framing, None)
        # The routes of all topics, and the plans of all branches, were made of that schema.
        self._routes = {key: route for key, route in self._routes.items() if key[0] != framing}
        self._resolved = {key: plan for key, plan in self._resolved.items() if key[0] != framing}

    def add_schema(
        self, ref: SchemaRef, schema_json: Json, kind: str = "AVRO"
    ) -> Rejection | Filtered | None:
        """See `AnyDecoder.add_schema`. Returns a verdict also if no record of it is read on any topic."""
        verdict: Rejection | Filtered | None = self._add(ref, schema_json, kind)
        if verdict is not None:
            return verdict
        framing = framing_of(ref)
        for at, node in enumerate(branches_of(self._writers[framing])):
            plan, number = self._branch(framing, at, node, None)
            # One that is read on some topic is enough, now or once the mapping of that topic is asked.
            if not isinstance(plan, Rejection | Filtered) or (not number and self._choice.knows(label(node))):
                return None
            verdict = plan
        return verdict

    def _branch(self, framing: bytes, at: int, writer: AvroType, topic: str | None) -> Route:
        number = self._choice.choose(label(writer), topic)
        if not isinstance(number, int):
            return Route(number, 0)
        key = (framing, at, number)
        if key not in self._resolved:
            try:
                plan = resolve(writer, self._ours[number - 1])
                asked = ALL if self._whole else self._choice.all[number - 1].asked
                self._resolved[key] = trimmed(plan, asked)
            except (Incompatible, InvalidSchema) as error:
                # Of this branch only: records of the others are read.
                self._resolved[key] = rejected(
                    DecodeCode.INCOMPATIBLE_SCHEMA, f"{describe(framing)}: {error}"
                )
        return Route(self._resolved[key], number)
