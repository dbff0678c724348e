"""Writers' schemas, and ours: a folder of ``.avsc`` files, and a Confluent-compatible registry.

Both answer `FetchSchema` with one of three values: found, missing (now), unavailable (no verdict). Each call has a time
limit and is tried once; the engine decides when to ask again, and when "missing" is final. The folder is checked again,
too: a file may come late. A registry is asked for the kinds of names that it has; all others are the folder's
(`schemas_on_disk` makes the choice).

File names are free. ``<anything>.<id>.avsc`` also answers for a Confluent id, ``<anything>.<guid>.avsc`` for a GUID,
and every file for its fingerprint. Files may refer to types of other files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from consumer.adapters.network import Network
from consumer.adapters.registry_errors import explain
from consumer.adapters.thread import run_blocking
from consumer.avro.references import definitions, inlined
from consumer.avro.schema import MAX_SCHEMA_CHARACTERS, InvalidSchema, Json, Record, Union, fingerprint, parse
from consumer.engine.messages import FetchSchema, SchemaAnswer, SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import SchemaRef
from consumer.errors import RegistryError, SchemaError, or_all

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for one fetch with all its references."""
MAX_REFERENCES: Final = 100
"""Further schemas that one schema may refer to, directly or not."""

# Characters of all of them: as JSON they take up to 24 times as many bytes.
_MOST_REFERRED: Final = 4 * MAX_SCHEMA_CHARACTERS


# The registry's own codes for: no such subject, version, schema. A plain 404 can come from a proxy, or from a registry
# that is too old to know the path.
_NOT_FOUND: Final = frozenset({40401, 40402, 40403})

# A registry's ids are signed, though the wire format has 32 bits for one. Asked for a higher one it answers that it
# does not know the path, which is no verdict: the record, which is garbage, would wait for ever.
_HIGHEST_ID: Final = 2**31 - 1


class _File(NamedTuple):
    """One schema of the folder; `version` is the id or GUID in its name, as `SchemaRef` spells it."""

    path: Path
    version: SchemaRef | None
    schema: Json
    record: str | None
    """The full name, if it is a record's."""
    branches: tuple[str, ...]
    """The full names of the records, if it is a union of some."""
    fingerprint: str


class LocalSchemas:
    """The ``*.avsc`` files of one folder, all read at once. Raises `SchemaError`, naming the file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, int]] | None = None
        self._files: list[_File] = []
        # The records of unions by full name, each complete in itself.
        self._branches: dict[str, dict[str, Any]] = {}
        self._by_ref: dict[SchemaRef, Json] = {}
        self._read()

    def _read(self) -> None:
        """Read the folder, unless its files are as they were."""
        # Each time it is asked: a file may come late, when its records are already there.
        seen = _state_of(self._folder)
        if seen == self._seen:
            return
        documents = {path: _document(path) for path in seen}
        files = [_file(path, documents) for path in documents]
        # A version of a union, with an id in its file's name, comes last: of one name the first definition counts.
        known = definitions(documents[path] for path in sorted(documents, key=_unversioned_first))
        branches: dict[str, dict[str, Any]] = {
            name: inlined(name, known) for file in files for name in file.branches
        }
        by_ref: dict[SchemaRef, Json] = {}
        versions: dict[SchemaRef, Path] = {}
        for file in files:
            # Two files with one fingerprint may differ in logical types: the first by name counts. Two with one id
            # contradict each other.
            by_ref.setdefault(SchemaRef("fingerprint", file.fingerprint), file.schema)
            if file.version is not None:
                other = versions.setdefault(file.version, file.path)
                if other != file.path:
                    raise SchemaError(
                        f"{file.path} and {other} have the same {file.version.kind}; rename one of them"
                    )
                by_ref[file.version] = file.schema
        # `produce` writes each record of a union with the schema of its own type.
        for schema in branches.values():
            by_ref.setdefault(SchemaRef("fingerprint", fingerprint(parse(schema))), schema)
        # All at once, and last: a folder that cannot be read leaves what was known of it.
        self._files, self._branches, self._by_ref, self._seen = files, branches, by_ref, seen

    def reader(self, name: str) -> dict[str, Any]:
        """The schema (JSON, complete in itself) of a record: `name` is its full name, the name without
        namespace, or the file's name without ``.avsc``. It may also be a branch of the union in a file.

        Raises `SchemaError` if there is none, or more than one and no file without a version in its name.
        """
        found = [
            file
            for file in self._files
            if file.record and name in (file.record, file.record.rpartition(".")[2], file.path.stem)
        ]
        # A file with an id or GUID in its name is a writer's version; the one without is ours.
        found = [file for file in found if file.version is None] or found
        if len(found) > 1:
            paths = " and ".join(file.path.name for file in found)
            raise SchemaError(
                f"{self._folder}: {paths} each define the record {name}; keep one, and remove the others or give them "
                "a schema id: <anything>.<id>.avsc"
            )
        schemas: list[dict[str, Any]] = [file.schema for file in found] or [
            schema for full, schema in self._branches.items() if name in (full, full.rpartition(".")[2])
        ]
        if len(schemas) != 1:
            raise SchemaError(self._lacking(name))
        return schemas[0]

    def record(self, name: str) -> dict[str, Any]:
        """The schema of the record type with this full name: a file's own, or a branch of the union in a file.

        Raises `SchemaError`, with the name that is spelled most like it.
        """
        if any(file.record == name for file in self._files):
            return self.reader(name)
        if name in self._branches:
            return self._branches[name]
        there = self._names()
        if not there:
            raise SchemaError(self._lacking(name))
        raise SchemaError(
            f"no .avsc file in {self._folder} defines the record {name}; {or_all(name, there)}: write "
            "the full name, or put its schema there"
        )

    def _names(self) -> list[str]:
        return sorted({*self._branches, *(file.record for file in self._files if file.record)})

    def _lacking(self, name: str) -> str:
        """The message when no file defines the record `name`."""
        there = self._names()
        if there:
            return (
                f"no .avsc file in {self._folder} defines the record {name}, only {', '.join(there)}; set "
                "PINSTREAM_SCHEMA to the full name of your record, and PINSTREAM_SCHEMAS_DIR to the folder of its file"
            )
        if self._files:
            return f"no .avsc file in {self._folder} defines a record; put that of {name} (PINSTREAM_SCHEMA) there"
        return (
            f"there is no .avsc file in {self._folder}{_elsewhere(self._folder)}; put the schema of the record {name} "
            "(PINSTREAM_SCHEMA) there, as <anything>.avsc, or set PINSTREAM_SCHEMAS_DIR to the folder where it is"
        )

    def find(self, ref: SchemaRef) -> Json | None:
        """The schema that `ref` names, complete in itself, or ``None``."""
        # A UUID in a file's name is a GUID of Confluent's or a schema version of AWS Glue's.
        return self._by_ref.get(SchemaRef("guid", ref.value) if ref.kind == "glue" else ref)

    async def fetch(self, command: FetchSchema) -> SchemaAnswer:
        """Answer from the folder as it is now: what is not there is missing.

        If the folder cannot be read now, the answer is unavailable.
        """
        ref = command.ref
        try:
            if self.find(ref) is None:  # a file may come late
                async with asyncio.timeout(DEFAULT_TIMEOUT):
                    await run_blocking("schemas", self._read)
        except TimeoutError:
            return SchemaUnavailable(
                ref, f"the schemas folder could not be read within {DEFAULT_TIMEOUT:g} s"
            )
        except SchemaError as error:
            return SchemaUnavailable(ref, str(error))
        schema = self.find(ref)
        return SchemaMissing(ref) if schema is None else SchemaFound(ref, schema)

    async def close(self) -> None:
        """Nothing is open."""


def _state_of(folder: Path) -> dict[Path, tuple[int, int]]:
    """The folder's ``.avsc`` files, each with what changes when it is written."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".avsc")
        return {path: (status.st_mtime_ns, status.st_size) for path in paths for status in (path.stat(),)}
    except OSError as error:
        raise SchemaError(
            f"{folder}: cannot be read ({error.strerror}); name the folder of .avsc files"
        ) from None


def _elsewhere(folder: Path) -> str:
    """Where a schema may be that is not read: in a folder below, or in a file with another suffix."""
    seen: list[Path] = []
    with contextlib.suppress(OSError):
        seen = sorted(path.relative_to(folder) for path in (*folder.glob("*/*.avsc"), *folder.glob("*.json")))
    return f" (other suffixes, and folders below, are not read: {seen[0]})" if seen else ""


def _document(path: Path) -> Json:
    try:
        if path.stat().st_size > MAX_SCHEMA_CHARACTERS:
            raise SchemaError(
                f"{path}: is larger than the limit of a schema ({MAX_SCHEMA_CHARACTERS >> 20} MiB)"
            )
        return json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SchemaError(f"{path}: cannot be read ({error.strerror})") from None
    except json.JSONDecodeError as error:
        raise SchemaError(f"{path}: is not JSON (line {error.lineno}: {error.msg}); correct it") from None
    except (ValueError, RecursionError):
        raise SchemaError(f"{path}: is not JSON; correct it") from None


def _file(path: Path, documents: Mapping[Path, Json]) -> _File:
    try:
        # Its own types come first, unversioned files before versions of them.
        others = sorted(documents, key=lambda other: (other != path, _unversioned_first(other)))
        schema = inlined(documents[path], definitions(documents[other] for other in others))
        node = parse(schema)
        of_bytes = fingerprint(node)
    except InvalidSchema as error:
        raise SchemaError(f"{path}: is not an Avro schema: {error}") from None
    except UnicodeEncodeError:
        raise SchemaError(f"{path}: a name in it contains a lone surrogate; correct it") from None
    name = node.name if isinstance(node, Record) else None
    inside = node.branches if isinstance(node, Union) else []
    branches = tuple(branch.name for branch in inside if isinstance(branch, Record))
    return _File(path, _version(path), schema, name, branches, of_bytes)


def _unversioned_first(path: Path) -> tuple[bool, Path]:
    return _version(path) is not None, path


def _version(path: Path) -> SchemaRef | None:
    """The id or GUID in a name like ``<anything>.<id>.avsc``."""
    anything, dot, last = path.stem.rpartition(".")
    if not anything or not dot:
        return None
    if last.isascii() and last.isdigit():  # Confluent's wire format has four bytes for an id
        return SchemaRef("id", str(int(last))) if int(last) < 2**32 else None
    try:
        return SchemaRef("guid", str(UUID(last))) if len(last) == len(str(UUID(int=0))) else None
    except ValueError:
        return None


class RegistrySchemas:
    """A Confluent-compatible registry, asked through Confluent's own client.

    `config` are that client's properties (``url``, ``basic.auth.user.info``, …), `timeout` seconds the limit of
    one fetch, `network` the way to it unless `config` has a ``proxy``. Raises `RegistryError` if the client refuses
    `config`.
    """

    kinds: frozenset[str] = frozenset({"id", "guid"})
    """Of `SchemaRef`: it knows neither fingerprints nor schema versions of AWS Glue."""

    def __init__(
        self, config: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT, network: Network | None = None
    ) -> None:
        # Imported here: that takes a third of a second, and most commands need no registry.
        from confluent_kafka.schema_registry import AsyncSchemaRegistryClient

        from consumer.adapters.bounded_answers import take_over

        self._network = network or Network()
        if proxy := config.get("proxy"):
            self._network = self._network.through(str(proxy), "SCHEMA_REGISTRY_PROXY")
        self._timeout = timeout
        self._config = config
        try:
            # One attempt only: when to ask again is the engine's to decide.
            # With a proxy, its own session, which is replaced, does not look for one in the environment.
            ours = {"max.retries": 0, "proxy": "http://proxy.invalid"}
            self._client = AsyncSchemaRegistryClient({**config, **ours})
            rest: Any = self._client._rest_client  # there is no other way to its HTTP library
            if "ssl.ca.location" not in config:
                rest.verify.load_default_certs()  # beside those that the client brings
            self._tokens = take_over(rest, self._network)
        except ssl.SSLError:
            raise RegistryError(
                "the files that SCHEMA_REGISTRY_SSL_… name cannot be used: they must be PEM, and a key must belong to "
                "its certificate, and SCHEMA_REGISTRY_SSL_KEY_PASSWORD to the key"
            ) from None
        except Exception as error:  # whatever a wrong file or address provokes; the text may quote a password
            raise RegistryError(
                f"the schema registry's client refuses its configuration ({type(error).__name__}): check "
                "SCHEMA_REGISTRY_URL and the other SCHEMA_REGISTRY_… settings"
            ) from None

    async def fetch(self, command: FetchSchema) -> SchemaAnswer:
        """Ask the registry once, references included. Never raises."""
        ref = command.ref
        if ref.kind == "id" and int(ref.value) > _HIGHEST_ID:
            return SchemaMissing(ref)
        try:
            async with asyncio.timeout(self._timeout):
                if ref.kind == "id":
                    schema = await self._client.get_schema(int(ref.value))
                else:
                    schema = await self._client.get_schema_by_guid(ref.value)
                return await self._found(ref, schema)
        except Exception as error:
            # No answer in time, an error of the client or of its HTTP library, or what a nonsensical answer provokes.
            if not isinstance(error, TimeoutError):
                # The client caches every answer for ever, also one without a schema. When the time is over, the
                # references that it has by then stay: the next attempt goes on from there.
                await self._client.clear_caches()  # type: ignore[no-untyped-call]  # it has no annotations
            status, code = getattr(error, "http_status_code", None), getattr(error, "error_code", None)
            if status == 401 and self._tokens is not None:
                # The next attempt asks for another: the registry's keys may have changed.
                self._tokens.token = ""
            # Only an explicit "not found" of the registry is missing. An outage, a refusal, a proxy's 404 or nonsense
            # must not make dead letters of good records.
            if status == 404 and isinstance(code, int) and code in _NOT_FOUND:
                return SchemaMissing(ref)
            return SchemaUnavailable(ref, self._reason(error, ref.kind), refused=status in (401, 403))

    async def newest(self, subject: str) -> SchemaFound | None:
        """Return the newest schema of this subject, or None if there is none. Raises `RegistryError`."""
        try:
            async with asyncio.timeout(self._timeout):
                latest = await self._client.get_latest_version(subject)
                return await self._found(SchemaRef("id", str(latest.schema_id)), latest.schema)
        except Exception as error:
            if getattr(error, "error_code", None) in _NOT_FOUND:
                return None
            raise RegistryError(self._reason(error)) from None

    async def contexts(self) -> list[str]:
        """Return the names of the registry's contexts; none if it does not say."""
        try:
            async with asyncio.timeout(self._timeout):
                return [str(name).strip(":") for name in await self._client.get_contexts()]
        except Exception:  # an outage, or a registry without contexts: `fetch` says what is wrong
            return []

    def _reason(self, error: Exception, kind: str = "id") -> str:
        if not isinstance(error, TimeoutError):
            return explain(error, self._config, self._network, kind)
        proxy = self._network.proxy(str(self._config.get("url", "")).partition(",")[0])
        via = "" if proxy is None else f", by way of the proxy {proxy}"
        return f"the registry did not answer within {self._timeout:g} s{via}"

    async def _found(self, ref: SchemaRef, schema: Schema) -> SchemaFound:
        """Return the schema: its text, or, if it refers to others, its JSON with their definitions put in."""
        kind = str(schema.schema_type or "AVRO").upper()
        if kind != "AVRO":
            return SchemaFound(ref, "", kind)
        if not schema.schema_str:
            raise ValueError("an answer without a schema")
        if not schema.references:
            return SchemaFound(ref, schema.schema_str)
        texts: dict[tuple[str, int], str] = {}
        waiting = [*schema.references]
        while waiting:
            reference = waiting.pop(0)
            key = (str(reference.subject), int(reference.version or 0))
            if key in texts:
                continue
            if len(texts) >= MAX_REFERENCES:
                raise ValueError("more references than are read")
            # A deleted version is still what its referrers were written with.
            referred = (await self._client.get_version(*key, deleted=True)).schema
            texts[key] = _bounded(referred.schema_str or "")
            # Checked after each one: a hostile registry must not fill the memory first.
            if sum(map(len, texts.values())) > _MOST_REFERRED:
                raise ValueError("more characters in references than are read")
            waiting[:0] = referred.references or ()
        documents = [json.loads(text) for text in texts.values()]
        return SchemaFound(ref, inlined(json.loads(_bounded(schema.schema_str)), definitions(documents)))

    async def register(self, subject: str, schema: Json) -> int:
        """The id of `schema` (JSON or its text) under `subject`, registered if it is not yet.

        Raises `RegistryError`.
        """
        from confluent_kafka.schema_registry import Schema

        text = schema if isinstance(schema, str) else json.dumps(schema)
        try:
            async with asyncio.timeout(self._timeout):
                return int(await self._client.register_schema(subject, Schema(text, "AVRO")))
        except Exception as error:
            raise RegistryError(
                f"the schema registry did not take the schema of {subject}: {self._reason(error)}"
            ) from None

    async def close(self) -> None:
        """Close the client's connections."""
        await self._client.aclose()
        if self._tokens is not None:
            await self._tokens.client.aclose()


def _bounded(text: str) -> str:
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise ValueError("a schema larger than one may be")
    return text
