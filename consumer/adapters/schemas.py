"""Writers' schemas, and ours: a folder of ``.avsc`` files, and a Confluent-compatible registry.

Both answer `FetchSchema` with one of three values: found, missing (now), unavailable (no verdict). Each call has a time
limit and is tried once; the engine decides when to ask again, and when "missing" is final. The folder is checked again,
too: a file may come late. A registry is asked for the kinds of names that it has, and the folder for all others
(`schemas_on_disk` chooses).

File names are free. ``<anything>.<id>.avsc`` also answers for a Confluent id, ``<anything>.<guid>.avsc`` for a GUID,
and every file for its fingerprint. Files may refer to types of other files.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import ChainMap
from collections.abc import Awaitable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from uuid import UUID

from consumer.adapters.network import Network, file_stamp
from consumer.adapters.registry_errors import explain_no_answer, oauth_code
from consumer.adapters.thread import run_blocking
from consumer.avro.references import definitions, inlined
from consumer.avro.schema import MAX_SCHEMA_CHARACTERS, InvalidSchema, Json, Record, Union, fingerprint, parse
from consumer.engine.messages import FetchSchema, SchemaAnswer, SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import SchemaRef
from consumer.errors import RegistryError, SchemaError, or_all

if TYPE_CHECKING:
    from confluent_kafka.schema_registry import Schema

_Answer = TypeVar("_Answer")

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds for one fetch with all its references."""
MAX_REFERENCES: Final = 100
"""Further schemas that one schema may refer to, directly or not."""

# Characters of all of those schemas: as JSON they take up to 24 times as many bytes.
_MAX_REFERRED: Final = 4 * MAX_SCHEMA_CHARACTERS

# The registry's own codes for an unknown subject, version and schema. A plain 404 can come from a proxy, or from a
# registry that is too old to know the path.
_NOT_FOUND: Final = frozenset({40401, 40402, 40403})

# A registry's ids are signed, though the wire format has 32 bits for one. Its answer to a higher one is that it does
# not know the path, which is no verdict: the record, which is garbage, would wait indefinitely.
_HIGHEST_ID: Final = 2**31 - 1


class _Type(NamedTuple):
    """A record type that the folder defines."""

    name: str  # with its namespace
    path: Path
    # The best comes first: a file of its own, a version of the type (with an id in the file's name), a branch of a
    # union.
    rank: int
    schema: dict[str, Any]  # complete in itself


_OURS, _VERSION, _BRANCH = range(3)


class LocalSchemas:
    """The ``*.avsc`` files of one folder, all read together. Raises `SchemaError`, naming the file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, tuple[int, int, int] | None] | None = None
        self._types: list[_Type] = []
        self._by_ref: dict[SchemaRef, Json] = {}
        self._read()

    def _read(self) -> None:
        """Read the folder, unless its files are unchanged."""
        # Called for each question: a file may be added when its records have already come.
        seen = _state_of(self._folder)
        if seen == self._seen:
            return
        documents = {path: _document(path) for path in seen}
        # Of several definitions of a name the first one counts; files with an id or GUID in their name come last.
        in_order = sorted(documents, key=lambda path: (_version(path) is not None, path))
        known: dict[str, Json] = {}
        for path in reversed(in_order):  # so that the first one overwrites the others
            with _naming(path):
                known |= definitions([documents[path]])
        types: list[_Type] = []
        branches: dict[str, Path] = {}
        by_ref: dict[SchemaRef, Json] = {}
        versions: dict[SchemaRef, Path] = {}
        for path, document in documents.items():
            with _naming(path):
                # A file's own types go before those of all others.
                schema = inlined(document, ChainMap(definitions([document]), known))
                node = parse(schema)
                # Two files with the same fingerprint may differ in logical types: the first by name counts.
                by_ref.setdefault(SchemaRef("fingerprint", fingerprint(node)), schema)
            version = _version(path)
            if isinstance(node, Record):
                types.append(_Type(node.name, path, _OURS if version is None else _VERSION, schema))
            elif isinstance(node, Union):
                records = (branch.name for branch in node.branches if isinstance(branch, Record))
                branches |= dict.fromkeys(records, path)
            if version is not None:
                # Two files with one id contradict each other.
                other = versions.setdefault(version, path)
                if other != path:
                    raise SchemaError(f"{path} and {other} have the same {version.kind}; rename one of them")
                by_ref[version] = schema
        for name, path in branches.items():
            schema = inlined(name, known)
            types.append(_Type(name, path, _BRANCH, schema))
            # `produce` writes each record of a union with the schema of its own type.
            by_ref.setdefault(SchemaRef("fingerprint", fingerprint(parse(schema))), schema)
        # All are replaced together, at the end: if the folder cannot be read, the earlier schemas stay.
        self._types, self._by_ref, self._seen = types, by_ref, seen

    def reader(self, name: str) -> dict[str, Any]:
        """Return `record` of a full name; or of the one record with this name without its namespace, or whose file has
        this name without ``.avsc``. Raises `SchemaError`."""
        also = {
            one.name
            for one in self._types
            if name in (one.name, one.name.rpartition(".")[2])
            or (name == one.path.stem and one.rank != _BRANCH)
        }
        return self.record(also.pop() if len(also) == 1 else name)

    def record(self, name: str) -> dict[str, Any]:
        """Return the schema (JSON, complete in itself) of the record type with this full name: a file's own, or a
        branch of the union in a file.

        Raises `SchemaError` if there is none, or more than one and no file without a version in its name.
        """
        found = [one for one in self._types if one.name == name]
        best = min((one.rank for one in found), default=_BRANCH)
        found = [one for one in found if one.rank == best]
        if len(found) == 1:
            return found[0].schema
        if found:
            paths = " and ".join(one.path.name for one in found)
            raise SchemaError(
                f"{self._folder}: {paths} each define the record {name}; keep one, and remove the others or give them "
                "a schema id: <anything>.<id>.avsc"
            )
        if self._types:
            known = or_all(name, sorted({one.name for one in self._types}))
            raise SchemaError(
                f"no .avsc file in {self._folder} defines the record {name}; {known}: write the full name "
                "(PINSTREAM_SCHEMA, or the mapping), or put its schema there (PINSTREAM_SCHEMAS_DIR)"
            )
        if self._seen:
            raise SchemaError(
                f"no .avsc file in {self._folder} defines a record; put that of {name} (PINSTREAM_SCHEMA) there"
            )
        unread = ""
        # The schema may be where none is read: in a subfolder, or in a file with another suffix.
        with contextlib.suppress(OSError):
            if others := sorted((*self._folder.glob("*/*.avsc"), *self._folder.glob("*.json"))):
                first = others[0].relative_to(self._folder)
                unread = f" (other suffixes, and folders below, are not read: {first})"
        raise SchemaError(
            f"there is no .avsc file in {self._folder}{unread}; put the schema of the record {name} "
            "(PINSTREAM_SCHEMA) there, as <anything>.avsc, or set PINSTREAM_SCHEMAS_DIR to the folder where it is"
        )

    def defined_in(self, path: Path | None) -> list[dict[str, Any]]:
        """Return the schemas of the record types that a file of the folder defines: its record, or the branches of its
        union; None: those of all files to which no other type refers. Raises `SchemaError`."""
        if path is not None and path.suffix != ".avsc":
            raise SchemaError(f"{path}: is no .avsc file: name one, or a folder of them")
        if path is not None and not path.is_file():
            raise SchemaError(f"{path}: there is no such file; name an .avsc file, or a folder of them")
        parts = {
            name
            for one in self._types
            for name in definitions([one.schema])
            if path is None and name != one.name
        }
        found = {
            one.name: one.schema
            for one in sorted(self._types, key=lambda one: -one.rank)
            if (path is None or one.path == path) and one.name not in parts
        }
        if not found:
            raise SchemaError(
                f"{path or self._folder}: defines no record; pinstream maps records and unions of them"
            )
        # Of one file in its own order.
        return [found[name] for name in (sorted(found) if path is None else found)]

    def find(self, ref: SchemaRef) -> Json | None:
        """Return the schema that `ref` names, complete in itself, or ``None``."""
        # A UUID in a file's name is a Confluent GUID or a schema version of AWS Glue.
        return self._by_ref.get(SchemaRef("guid", ref.value) if ref.kind == "glue" else ref)

    async def fetch(self, command: FetchSchema) -> SchemaAnswer:
        """Answer from the folder as it is now: a schema that is not there is missing.

        If the folder cannot be read now, the answer is unavailable.
        """
        ref = command.ref
        try:
            if self.find(ref) is None:  # a file may be added late
                async with asyncio.timeout(DEFAULT_TIMEOUT):
                    await run_blocking("schemas", self._read)
        except TimeoutError:
            return SchemaUnavailable(ref, f"the schemas folder was not read within {DEFAULT_TIMEOUT:g} s")
        except SchemaError as error:
            return SchemaUnavailable(ref, str(error))
        schema = self.find(ref)
        return SchemaMissing(ref) if schema is None else SchemaFound(ref, schema)

    async def close(self) -> None:
        """Do nothing: no file is open."""


def _state_of(folder: Path) -> dict[Path, tuple[int, int, int] | None]:
    """Return the folder's ``.avsc`` files, each with values that change when it is written or swapped."""
    try:
        return {path: file_stamp(path) for path in sorted(folder.iterdir()) if path.suffix == ".avsc"}
    except OSError as error:
        raise SchemaError(
            f"{folder}: cannot be read ({error.strerror}); name the folder of .avsc files"
        ) from None


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name this file in the error of a schema."""
    try:
        yield
    except InvalidSchema as error:
        raise SchemaError(f"{path}: is not an Avro schema: {error}") from None
    except UnicodeEncodeError:
        raise SchemaError(f"{path}: a name in it contains a lone surrogate; correct it") from None


def _document(path: Path) -> Json:
    try:
        if path.stat().st_size > MAX_SCHEMA_CHARACTERS:
            raise SchemaError(
                f"{path}: is larger than the limit of a schema ({MAX_SCHEMA_CHARACTERS >> 20} MiB)"
            )
        return json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SchemaError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{path}: is not JSON ({error}); correct it") from None


def _version(path: Path) -> SchemaRef | None:
    """Return the id or GUID in a name like ``<anything>.<id>.avsc``."""
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
    """A Confluent-compatible registry, which is asked through Confluent's own client.

    `config` are that client's properties (``url``, ``basic.auth.user.info``, …), `timeout` seconds the limit of
    one fetch, `network` the way to it unless `config` has a ``proxy``. Raises `RegistryError` if the client refuses
    `config`.
    """

    kinds: frozenset[str] = frozenset({"id", "guid"})
    """Kinds of `SchemaRef` that it answers: neither fingerprints nor schema versions of AWS Glue."""

    def __init__(
        self, config: Mapping[str, Any], *, timeout: float = DEFAULT_TIMEOUT, network: Network | None = None
    ) -> None:
        # Imported here: importing takes a third of a second, and most commands need no registry.
        from confluent_kafka.schema_registry import AsyncSchemaRegistryClient

        from consumer.adapters.bounded_answers import take_over

        network = network or Network()
        if proxy := config.get("proxy"):
            network = network.through(str(proxy), "SCHEMA_REGISTRY_PROXY")
        self._timeout = timeout
        self._why = partial(explain_no_answer, config=config, network=network, timeout=timeout)
        try:
            # One attempt only: the engine decides when to ask again. With a proxy set, the client's own session, which
            # is replaced, does not look for one in the environment.
            ours = {"max.retries": 0, "proxy": "http://proxy.invalid"}
            self._client = AsyncSchemaRegistryClient({**config, **ours})
            rest: Any = self._client._rest_client  # there is no other access to its HTTP library
            if "ssl.ca.location" not in config:
                rest.verify.load_default_certs()  # beside those that the client trusts anyway
            self._tokens = take_over(rest, network)
        except OSError:  # also OpenSSL's errors
            raise RegistryError(
                "the files that SCHEMA_REGISTRY_SSL_… name cannot be used: they must be readable and PEM, a key must "
                "belong to its certificate, and SCHEMA_REGISTRY_SSL_KEY_PASSWORD to the key"
            ) from None
        except Exception as error:  # any error, from a wrong address; its text may quote a password
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
                    schema = await _there(self._client.get_schema(int(ref.value)))
                else:
                    schema = await _there(self._client.get_schema_by_guid(ref.value))
                return SchemaMissing(ref) if schema is None else await self._found(ref, schema)
        except Exception as error:
            # No answer in time, an error of the client or of its HTTP library, or one that a nonsensical answer causes.
            if not isinstance(error, TimeoutError):
                # The client caches every answer indefinitely, also one without a schema: drop the cache. After a
                # time-out the references that came stay in it: the next attempt goes on from there.
                cleared: Any = self._client.clear_caches()  # type: ignore[no-untyped-call]  # it has no annotations
                if cleared is not None:  # older clients do it at once
                    await cleared
            status = getattr(error, "http_status_code", None)
            if status == 401 and self._tokens is not None:
                # The next attempt asks for another token: the registry's keys may have changed.
                self._tokens.token = ""
            refused = status in (401, 403) or oauth_code(error) != ""
            return SchemaUnavailable(ref, self._why(error, ref.kind), refused=refused)

    async def newest(self, subject: str) -> SchemaFound | SchemaUnavailable | None:
        """Return the newest schema of this subject, why it cannot be used, or None: there is none. Raises
        `RegistryError` if the registry does not answer."""
        try:
            async with asyncio.timeout(self._timeout):
                latest = await _there(self._client.get_latest_version(subject))
                if latest is None:
                    return None
                ref = SchemaRef("id", str(latest.schema_id))
                return await self._found(ref, latest.schema)
        except RegistryError as error:
            return SchemaUnavailable(ref, str(error))
        except Exception as error:
            raise RegistryError(self._why(error)) from None

    async def contexts(self) -> list[str]:
        """Return the names of the registry's contexts; none if it does not say."""
        try:
            async with asyncio.timeout(self._timeout):
                return [str(name).strip(":") for name in await self._client.get_contexts()]
        except Exception:  # an outage, or a registry without contexts: `fetch` reports what is wrong
            return []

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
            # Schemas still refer to a version that is deleted, unless it was deleted for good.
            referred = await _there(self._client.get_version(*key, deleted=True))
            if referred is None:
                raise RegistryError("a schema that this one refers to was deleted: register that one again")
            texts[key] = _bounded(referred.schema.schema_str or "")
            waiting[:0] = referred.schema.references or ()
            # Checked after each one: a hostile registry must not fill the memory first.
            if len(texts) > MAX_REFERENCES or sum(map(len, texts.values())) > _MAX_REFERRED:
                raise RegistryError(
                    f"the registry's schema refers to more than {MAX_REFERENCES} others, or to more than "
                    f"{_MAX_REFERRED >> 20} MiB of them: pinstream reads no more; use fewer or smaller ones"
                )
        documents = [json.loads(text) for text in texts.values()]
        return SchemaFound(ref, inlined(json.loads(_bounded(schema.schema_str)), definitions(documents)))

    async def register(self, subject: str, schema: Json) -> int:
        """Return the id of `schema` (JSON or its text) under `subject`; register it if it is not yet.

        Raises `RegistryError`.
        """
        from confluent_kafka.schema_registry import Schema

        text = schema if isinstance(schema, str) else json.dumps(schema)
        try:
            async with asyncio.timeout(self._timeout):
                return int(await self._client.register_schema(subject, Schema(text, "AVRO")))
        except Exception as error:
            raise RegistryError(
                f"the schema registry did not take the schema of {subject}: {self._why(error)}"
            ) from None

    async def close(self) -> None:
        """Close the client's connections."""
        async with self._client:  # its end closes them; older clients have no `aclose`
            pass
        if self._tokens is not None:
            await self._tokens.client.aclose()


async def _there(question: Awaitable[_Answer]) -> _Answer | None:
    """Return what the registry answers; None: it says that there is no such schema."""
    try:
        return await question
    except Exception as error:
        # Only an explicit "not found" of the registry counts as missing. An outage, a refusal, a proxy's 404 or
        # nonsense must not make dead letters of good records. The code comes from the body, which may hold anything.
        status, code = getattr(error, "http_status_code", None), getattr(error, "error_code", None)
        if status == 404 and isinstance(code, int) and code in _NOT_FOUND:
            return None
        raise


def _bounded(text: str) -> str:
    if len(text) > MAX_SCHEMA_CHARACTERS:
        raise RegistryError(
            "the registry's schema, or one that it refers to, is larger than the limit of a schema "
            f"({MAX_SCHEMA_CHARACTERS >> 20} MiB): use a smaller one"
        )
    return text
