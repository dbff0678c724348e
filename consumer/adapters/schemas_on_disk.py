"""Schemas on disk: the registry's answers, kept in the state folder for a start during an outage of the registry.

Theory of operation. The registry is always asked first, and its answer counts. Only if it gives none
(`SchemaUnavailable`), the file is read. The answer is then marked (`SchemaFound.unanswered`), and the engine goes on
asking the registry until it answers. The reason: an id means a schema only for one registry. A registry
whose database was lost gives the same ids to other schemas, and records that are read with a wrong schema are garbage
that looks right. So when the registry contradicts one file (it has another schema for it, or none), all files of this
registry are removed.

Each schema is a file of its own, ``id-17-<registry>.schema``, complete in itself (references are put in)::

    pinstream schema, format 1
    {"registry": …, "kind": "id", "value": "17", "schema": …}
    the SHA-256 of these two lines

``<registry>`` is a digest of its address without user and password. A file is written beside its place, flushed and
renamed: so it is complete or absent. A file that is damaged in spite of this, or not ours, counts as absent. Any number
of processes may use the folder: none relies on a file, and all write the same.

The time of a file is that of its latest use. The least recently used files are removed when there are too many, or too
many bytes. The folder can be removed at any time: the registry's answers fill it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import stat
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from consumer.adapters.disk import replace_file
from consumer.adapters.thread import OwnThread
from consumer.avro.schema import Json
from consumer.engine.messages import FetchSchema, SchemaAnswer, SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import SchemaRef

MAX_FILES: Final = 1_000
MAX_FOLDER_BYTES: Final = 64 * 1024 * 1024
# A schema may be 1 MiB, and 4 MiB of references may be put in. Escaped in JSON it may be larger; then it is not kept.
MAX_SCHEMA_BYTES: Final = 8 * 1024 * 1024

_FORMAT: Final = b"pinstream schema, format 1\n"
_CHECK_BYTES: Final = 65
_NAME: Final = re.compile(r"(id|guid|glue)-([0-9a-f-]+)-([0-9a-f]{16})\.schema")
"""Kind and value of a `SchemaRef`, and the registry."""
_HALF_WRITTEN: Final = re.compile(r"\.(?:id|guid|glue)-.*\.schema\.new")
# Seconds after which a half-written file counts as abandoned: its process was killed.
_ABANDONED: Final = 3600.0
_READ_WITHIN: Final = 5.0
"""Seconds for reading from the disk, which may hang."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def registry_digest(config: Mapping[str, Any]) -> str:
    """Return 16 hex digits for the registry that the properties name; credentials and the order of addresses do not
    count."""
    addresses = set()
    for url in str(config["url"]).split(","):
        parts = urlsplit(url.strip())
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        # The path counts: a context of a registry (/contexts/.shop) has ids of its own.
        addresses.add(f"{parts.scheme}://{parts.hostname}:{port}{parts.path.rstrip('/')}")
    # In Confluent Cloud one address serves many registries; the cluster names one of them.
    cluster = str(config.get("bearer.auth.logical.cluster", ""))
    return hashlib.sha256("\n".join([*sorted(addresses), cluster]).encode()).hexdigest()[:16]


class Unfit(Exception):
    """A file that exists and is not used; the text says why."""


@dataclass(frozen=True)
class SchemaFiles:
    """The files of one registry in `folder`. All methods block; all but `read` raise `OSError`."""

    folder: Path
    registry: str

    def read(self, ref: SchemaRef) -> Json | None:
        """Return the schema, complete in itself; None: there is no file. Raises `Unfit` and `OSError`."""
        path = self._path(ref)
        # A pipe in the file's place must not block, and a link must not be followed.
        flags = os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            with open(path, "rb", opener=lambda name, expected: os.open(name, expected | flags)) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise Unfit(f"{path} is no file")
                if status.st_uid != os.geteuid():
                    raise Unfit(f"{path} belongs to another user")
                # One byte more than allowed: a longer file fails its checksum, and is not read whole.
                data = file.read(MAX_SCHEMA_BYTES + 1)
        except FileNotFoundError:
            return None
        text, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
        if not data.startswith(_FORMAT) or check != _check(text):
            raise Unfit(f"{path} is damaged, or of another version of pinstream")
        found = json.loads(text[len(_FORMAT) :])
        # A file that was renamed by hand is valid, but of another schema.
        if (found["registry"], found["kind"], found["value"]) != (self.registry, *ref):
            raise Unfit(f"{path} is of another schema")
        schema: Json = found["schema"]
        return schema

    def used(self, ref: SchemaRef) -> None:
        """Note that the schema was used now."""
        # The file's time is that of its latest use: the least recently used files are removed first.
        os.utime(self._path(ref))

    def write(self, ref: SchemaRef, schema: Json) -> None:
        """Keep this schema, durably, in place of the one that was kept for `ref`; remove the least recently used
        ones."""
        about = {"registry": self.registry, "kind": ref.kind, "value": ref.value, "schema": schema}
        text = _FORMAT + json.dumps(about).encode() + b"\n"
        if len(text) + _CHECK_BYTES > MAX_SCHEMA_BYTES:  # `read` would not accept it
            return
        # Schemas hold no personal data, but another user must not change how records are read.
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(ref)
        # Each writer has a name of its own, so that two do not write into one file.
        new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.schema.new")
        # It is flushed before it gets its name: a power failure, after which a registry is often down for long, must
        # not leave the name without the content. If the name itself is lost, no harm is done.
        replace_file(str(path), str(new), text + _check(text))
        self._prune()

    def remove_all(self) -> int:
        """Remove all files of this registry; return how many there were."""
        refs = self._refs()
        for ref in refs:
            self._path(ref).unlink(missing_ok=True)
        return len(refs)

    def count(self) -> int:
        """Return how many schemas of this registry can be read."""
        readable = 0
        for ref in self._refs():
            with suppress(OSError, Unfit, ValueError):
                readable += self.read(ref) is not None
        return readable

    def _path(self, ref: SchemaRef) -> Path:
        return self.folder / f"{ref.kind}-{ref.value}-{self.registry}.schema"

    def _refs(self) -> list[SchemaRef]:
        """Return the references of this registry's schemas, from the names of the files."""
        names = os.listdir(self.folder) if self.folder.exists() else []
        named = [found for name in names if (found := _NAME.fullmatch(name)) is not None]
        return [SchemaRef(one[1], one[2]) for one in named if one[3] == self.registry]

    def _prune(self) -> None:
        """Remove the least recently used files of all registries beyond the limits, and old half-written files."""
        kept = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process removed it
                status = path.lstat()
                if _NAME.fullmatch(path.name):
                    kept.append((status.st_mtime_ns, status.st_size, path))
                elif _HALF_WRITTEN.fullmatch(path.name) and status.st_mtime < time.time() - _ABANDONED:
                    path.unlink()
        excess, bytes_left = len(kept) - MAX_FILES, sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):  # by the time of the latest use
            if excess <= 0 and bytes_left <= MAX_FOLDER_BYTES:
                break
            path.unlink(missing_ok=True)
            excess, bytes_left = excess - 1, bytes_left - size


def _check(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode() + b"\n"


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


class Registry(Protocol):
    """The registry, which is asked first; see `consumer.adapters.schemas.RegistrySchemas`."""

    kinds: frozenset[str]
    """Kinds of `SchemaRef` that it answers."""

    async def fetch(self, command: FetchSchema) -> SchemaAnswer:
        """Ask once, about one of its `kinds`. Never raises."""

    async def close(self) -> None:
        """Close the connections."""


@dataclass(eq=False)
class KeptSchemas:
    """A registry whose answers are kept in files, which are read when it does not answer.

    `local` answers for the kinds of names that the registry does not have. `on_error` gets a line
    for each kind of error with the files, once. Without `writes` the files are only read.
    """

    registry: Registry
    files: SchemaFiles
    local: Callable[[FetchSchema], Awaitable[SchemaAnswer]]
    on_error: Callable[[str], None] = lambda text: None
    _: KW_ONLY
    writes: bool = True

    def __post_init__(self) -> None:
        self._reported: set[str] = set()
        # The disk may be slow: reading waits here, and nothing waits for writing.
        self._thread = OwnThread("schemas-on-disk")

    async def fetch(self, command: FetchSchema) -> SchemaAnswer:
        """Ask the registry once; if it gives no answer, read the files. Never raises."""
        if command.ref.kind not in self.registry.kinds:
            return await self.local(command)
        answer = await self.registry.fetch(command)
        if not isinstance(answer, SchemaUnavailable):
            if self.writes:
                self._thread.begin(lambda: self._keep(answer))
            return answer
        try:
            async with asyncio.timeout(_READ_WITHIN):
                schema = await self._thread.run(self._read, command.ref)
        except TimeoutError:
            self._report(f"the disk did not answer within {_READ_WITHIN:g} s")
            return answer
        return answer if schema is None else SchemaFound(answer.ref, schema, unanswered=answer)

    async def kept(self) -> int:
        """Return how many schemas of this registry can be read from disk; 0 if the disk cannot."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_READ_WITHIN):
                return await self._thread.run(self.files.count)
        return 0

    async def close(self) -> None:
        """Close the registry's client, and finish what is being written."""
        await self.registry.close()
        await self._thread.end()

    # --- in the thread

    def _read(self, ref: SchemaRef) -> Any:
        try:
            schema = self.files.read(ref)
        # After any error of the file or the disk, the schema counts as absent.
        except Exception as error:
            what = f"a schema in {self.files.folder} cannot be read ({_why(error)})"
            self._report(f"{error if isinstance(error, Unfit) else what}: it is not used")
            return None
        if schema is not None and self.writes:
            with suppress(OSError):  # a folder that cannot be written can be read all the same
                self.files.used(ref)
        return schema

    def _keep(self, answer: SchemaFound | SchemaMissing) -> None:
        """Make the files agree with the registry's answer."""
        ref = answer.ref
        # A schema of another kind than Avro is never read, so it counts as none.
        found = answer if isinstance(answer, SchemaFound) and answer.kind == "AVRO" else None
        try:
            before = None
            with suppress(Unfit, OSError, ValueError):  # it is written again
                before = self.files.read(ref)
            if before is not None:
                if found is not None and found.is_same(SchemaFound(ref, before)):
                    self.files.used(ref)
                    return
                removed = self.files.remove_all()
                has = "no" if found is None else "another"
                self._report(
                    f"the registry has {has} schema {ref.kind} {ref.value}, and had one before: was it reset? "
                    f"What was kept of it on disk is removed ({removed} in all)"
                )
            if found is not None:
                self.files.write(ref, found.schema)
        # The disk is full, or cannot be written.
        except Exception as error:
            self._report(
                f"{self.files.folder} cannot keep what the schema registry answers ({_why(error)}): make it "
                "writable, with free space; until then a start needs the registry"
            )

    def _report(self, text: str) -> None:
        # The same error comes again with every question. The memory of texts is bounded, since they name schemas.
        if text not in self._reported and len(self._reported) < MAX_FILES:
            self._reported.add(text)
            self.on_error(text)
