"""The registry's answers kept on disk: read while the registry is away, and never a wrong schema.

The files are real. Faults are failing system calls of the module, at each place where one can fail.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters import disk as disk_module
from consumer.adapters import schemas_on_disk
from consumer.adapters.schemas_on_disk import KeptSchemas, SchemaFiles, Unfit, registry_digest
from consumer.avro.schema import Json
from consumer.engine.messages import FetchSchema, SchemaAnswer, SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import SchemaRef
from tests.adapters.faults import Fault, failing

PLAIN = {"type": "record", "name": "shop.Plain", "fields": [{"name": "v", "type": "int"}]}
OLDER = {"type": "record", "name": "shop.Plain", "fields": [{"name": "u", "type": "int"}]}
ID = SchemaRef("id", "17")
GUID = SchemaRef("guid", "89791762-2336-4186-9674-299b90a802e2")
HERE = registry_digest({"url": "http://registry:8081"})
OTHER_REGISTRY = registry_digest({"url": "http://other:8081"})


class RegistryAnswers:
    """A registry whose answers a test sets."""

    kinds = frozenset({"id", "guid"})

    def __init__(self) -> None:
        self.known: dict[SchemaRef, SchemaAnswer] = {}
        self.away = False

    async def fetch(self, command: FetchSchema) -> SchemaAnswer:
        """Behave like `schemas_on_disk.Registry`."""
        if self.away:
            return SchemaUnavailable(command.ref, "it is away")
        return self.known.get(command.ref, SchemaMissing(command.ref))

    async def close(self) -> None:
        """Do nothing."""


async def local(command: FetchSchema) -> SchemaAnswer:
    """Answer like a folder that has every schema."""
    return SchemaFound(command.ref, PLAIN)


class Kept:
    """The schemas of successive processes, over one folder and one registry."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "kept"
        self.files = SchemaFiles(self.folder, HERE)
        self.registry = RegistryAnswers()
        self.reported: list[str] = []

    async def ask(self, *refs: SchemaRef, writes: bool = True) -> list[SchemaAnswer]:
        """Return the answers that a new process gets."""
        schemas = KeptSchemas(self.registry, self.files, local, self.reported.append, writes=writes)
        answers = [await schemas.fetch(FetchSchema(ref)) for ref in refs]
        await schemas.close()
        return answers

    async def ask_away(self, *refs: SchemaRef) -> list[SchemaAnswer]:
        """Return the answers that a new process gets while the registry is away."""
        self.registry.away = True
        answers = await self.ask(*refs)
        self.registry.away = False
        return answers

    def has(self, ref: SchemaRef, schema: Any) -> None:
        """Let the registry have this schema from now on."""
        self.registry.known[ref] = SchemaFound(ref, schema)

    @property
    def names(self) -> list[str]:
        """The names of the files."""
        return sorted(os.listdir(self.folder)) if self.folder.exists() else []


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    """Return an empty state folder."""
    return Kept(tmp_path)


def away(ref: SchemaRef) -> SchemaUnavailable:
    """Return the answer when neither the registry nor the disk has the schema."""
    return SchemaUnavailable(ref, "it is away")


# --- with the registry and without it


async def test_what_was_answered_is_read_while_the_registry_is_away(kept: Kept) -> None:
    """Unchanged, with the reason for its absence; new ones are unavailable, and fingerprints are the folder's alone."""
    schema = {**PLAIN, "doc": "größe 😀", "fields": [{"name": "v", "type": "double", "default": 1e300}]}
    print_ = SchemaRef("fingerprint", "0" * 16)
    kept.has(ID, json.dumps(PLAIN))
    kept.has(GUID, schema)
    await kept.ask(ID, GUID, print_)
    assert await kept.ask_away(ID, GUID, SchemaRef("id", "18"), print_) == [
        SchemaFound(ID, json.dumps(PLAIN), unanswered=away(ID)),
        SchemaFound(GUID, schema, unanswered=away(GUID)),
        away(SchemaRef("id", "18")),
        SchemaFound(print_, PLAIN),
    ]
    assert (len(kept.names), kept.reported) == (2, [])


@pytest.mark.parametrize(
    ("answer", "has", "stays"),
    [
        (SchemaFound(ID, OLDER), "another", OLDER),
        (SchemaMissing(ID), "no", None),
        (SchemaFound(ID, "", "PROTOBUF"), "no", None),
        # The same in other words, as another version of the registry may write it.
        (SchemaFound(ID, json.dumps(dict(reversed(PLAIN.items())), indent=2)), "", PLAIN),
    ],
)
async def test_the_registry_counts_where_it_answers(
    kept: Kept, answer: SchemaFound | SchemaMissing, has: str, stays: Json | None
) -> None:
    """If it contradicts a file, all that is kept of it goes: its other schemas may differ, too. A line says why."""
    kept.has(ID, PLAIN)
    kept.has(GUID, PLAIN)
    await kept.ask(ID, GUID)
    kept.registry.known[ID] = answer
    assert await kept.ask(ID) == [answer]
    line = (
        f"the registry has {has} schema id 17, and had one before: was it reset? What was kept of it on disk is "
        "removed (2 in all)"
    )
    assert kept.reported == ([line] if has else [])
    found = [
        away(ref) if schema is None else SchemaFound(ref, schema, unanswered=away(ref))
        for ref, schema in ((ID, stays), (GUID, None if has else PLAIN))
    ]
    assert await kept.ask_away(ID, GUID) == found


async def test_each_registry_has_its_own(kept: Kept) -> None:
    """One id may mean different schemas; `check` counts the valid files of its registry."""
    schemas = KeptSchemas(kept.registry, kept.files, local)
    assert await schemas.kept() == 0
    kept.files.write(ID, PLAIN)
    assert SchemaFiles(kept.folder, OTHER_REGISTRY).read(ID) is None
    SchemaFiles(kept.folder, OTHER_REGISTRY).write(ID, OLDER)
    assert kept.files.read(ID) == PLAIN
    (kept.folder / f"guid-{GUID.value}-{HERE}.schema").write_bytes(b"")
    assert await schemas.kept() == 1
    await schemas.close()
    assert (kept.files.remove_all(), kept.files.count()) == (2, 0)
    assert SchemaFiles(kept.folder, OTHER_REGISTRY).count() == 1


def test_a_registry_is_identified_by_its_address_without_credentials() -> None:
    """Nor order and default ports; a context and a logical cluster count."""
    same = [
        "http://a:8081,http://b/sr",
        "http://b:80/sr/, http://A:8081",
        "http://user:secret@a:8081,http://b/sr",
    ]
    assert len({registry_digest({"url": url, "basic.auth.user.info": url}) for url in same}) == 1
    urls = ["http://a:8081", "https://a:8081", "http://a:8082", "http://a:8081/contexts/.shop"]
    others = [{"url": url} for url in urls] + [{"url": urls[0], "bearer.auth.logical.cluster": "lsrc-1"}]
    assert len({registry_digest(config) for config in others}) == len(others)


async def test_files_are_for_this_user_alone_and_say_nothing_of_credentials(kept: Kept) -> None:
    """Under any umask; a name has a digest of the address, and no file shows it."""
    kept.has(ID, PLAIN)
    before = os.umask(0)
    try:
        await kept.ask(ID)
    finally:
        os.umask(before)
    [path] = kept.folder.iterdir()
    assert path.name == f"id-17-{HERE}.schema"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.folder.stat().st_mode) == 0o700
    assert "registry:8081" not in path.read_text()


async def test_a_process_that_may_not_write_changes_nothing(kept: Kept) -> None:
    """A dry run, `check` or `dead-letters show`: neither files nor their times."""
    kept.has(ID, PLAIN)
    await kept.ask(ID)
    [path] = kept.folder.iterdir()
    os.utime(path, (1, 1))
    kept.has(ID, OLDER)
    kept.has(GUID, OLDER)
    await kept.ask(ID, GUID, writes=False)
    kept.registry.away = True
    assert await kept.ask(ID, writes=False) == [SchemaFound(ID, PLAIN, unanswered=away(ID))]
    assert (path.stat().st_mtime, len(kept.names)) == (1, 1)


# --- damage


def file_of(kept: Kept) -> Path:
    """Write a schema; return its file."""
    kept.files.write(ID, PLAIN)
    [path] = kept.folder.iterdir()
    return path


def read(kept: Kept) -> Json | None:
    """Return the schema that is read, or None if its file is refused."""
    try:
        return kept.files.read(ID)
    except (Unfit, OSError):
        return None


def test_no_damaged_file_is_read(kept: Kept) -> None:
    """A file with one flipped bit, in any byte, one cut at any length, or with bytes added, is not read."""
    path = file_of(kept)
    whole = path.read_bytes()
    flipped = (whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole)))
    for damaged in (*flipped, *(whole[:length] for length in range(len(whole))), whole + b"\n"):
        path.write_bytes(damaged)
        assert read(kept) is None, damaged
    path.write_bytes(whole)
    assert read(kept) == PLAIN


def _renamed(path: Path) -> None:
    SchemaFiles(path.parent, HERE).write(SchemaRef("id", "18"), OLDER)
    path.with_name(path.name.replace("id-17", "id-18")).replace(path)


def _of_another_registry(path: Path) -> None:
    SchemaFiles(path.parent, OTHER_REGISTRY).write(ID, OLDER)
    path.with_name(f"id-17-{OTHER_REGISTRY}.schema").replace(path)


def _newer(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"format 1", b"format 2"))


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".aside"))
    path.symlink_to(path.with_suffix(".aside"))


def _large(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize("spoil", [_renamed, _of_another_registry, _newer, _pipe, _folder, _link, _large])
async def test_a_file_that_is_not_of_this_schema_is_ignored(
    kept: Kept, spoil: Callable[[Path], None]
) -> None:
    """With one line; once the registry answers, it is written again (a folder in its place is not)."""
    spoil(file_of(kept))
    assert await kept.ask_away(ID, ID) == [away(ID), away(ID)]
    assert len(kept.reported) == 1
    assert kept.files.count() == 0
    kept.has(ID, PLAIN)
    await kept.ask(ID)
    expected = away(ID) if spoil is _folder else SchemaFound(ID, PLAIN, unanswered=away(ID))
    assert await kept.ask_away(ID) == [expected]


async def test_another_users_file_is_not_read(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's file is not read, since it would decide how records are read."""
    path = file_of(kept)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert await kept.ask_away(ID) == [away(ID)]
    assert kept.reported == [f"{path} belongs to another user: it is not used"]


# --- a disk that fails


@pytest.mark.parametrize("kind", ["short", "EIO", "half ENOSPC", "kill", "half kill"])
def test_a_write_leaves_the_schema_before_or_the_one_after(kept: Kept, kind: str) -> None:
    """At whichever call it fails or ends; the next write works, and removes leftovers."""
    for at in count(1):
        kept.files.remove_all()
        kept.files.write(ID, PLAIN)
        written = False
        with failing(kept.folder, Fault(kind, at), disk_module) as disk, suppress(OSError):
            kept.files.write(ID, OLDER)
            written = True
        assert kept.files.read(ID) in ((OLDER,) if written else (PLAIN, OLDER))
        for path in kept.folder.glob(".*"):
            assert "kill" in kind, "what failed is tidied up at once"
            os.utime(path, (1, 1))
        kept.files.write(ID, PLAIN)
        assert kept.names == [f"id-17-{HERE}.schema"]
        if not disk.hit:
            break
    assert at > (1 if "half" in kind or kind == "short" else 4), "it was tried at each call"


async def test_a_disk_that_fails_is_a_line_and_no_more(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come as without it, and each error is reported once."""
    kept.has(ID, PLAIN)
    reason = os.strerror(errno.ENOSPC)

    class Full:
        """The module `os` with a disk on which no file can be opened."""

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def open(self, *_: object) -> int:
            raise OSError(errno.ENOSPC, reason)

    for module in (schemas_on_disk, disk_module):
        monkeypatch.setattr(module, "os", Full())
    assert await kept.ask(ID, ID) == [SchemaFound(ID, PLAIN)] * 2
    assert await kept.ask_away(ID, ID) == [away(ID)] * 2
    assert kept.reported == [
        f"{kept.folder} cannot keep what the schema registry answers ({reason}): make it writable, with free space; "
        "until then a start needs the registry",
        f"a schema in {kept.folder} cannot be read ({reason}): it is not used",
    ]


async def test_a_disk_that_hangs_delays_no_answer(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes are not waited for, reads only shortly, and the close has a time limit."""
    monkeypatch.setattr(schemas_on_disk, "_READ_WITHIN", 0.05)
    may_go_on = threading.Event()

    class Hanging(SchemaFiles):
        """Files whose reads do not return."""

        def read(self, ref: SchemaRef) -> Json | None:
            """Wait as long as the test says."""
            may_go_on.wait()
            return None

    schemas = KeptSchemas(kept.registry, Hanging(kept.folder, HERE), local, kept.reported.append)
    kept.has(ID, PLAIN)
    try:
        assert await schemas.fetch(FetchSchema(ID)) == SchemaFound(ID, PLAIN)
        kept.registry.away = True
        assert await schemas.fetch(FetchSchema(ID)) == away(ID)
        await schemas.close()
    finally:
        may_go_on.set()
    assert kept.reported == ["the disk did not answer within 0.05 s"]


# --- bounds, and several processes


def test_what_was_not_used_for_longest_is_removed(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit of number or bytes, over all registries; other files stay."""
    monkeypatch.setattr(schemas_on_disk, "MAX_FILES", 3)
    other_registry = SchemaFiles(kept.folder, OTHER_REGISTRY)
    refs = [SchemaRef("id", str(number)) for number in range(5)]
    for age, ref in enumerate(refs[:3]):
        (other_registry if age == 1 else kept.files).write(ref, PLAIN)
        for path in kept.folder.glob(f"id-{ref.value}-*"):
            os.utime(path, (1000 + age, 1000 + age))
    (kept.folder / "mine.avsc").write_text("{}")
    kept.files.used(refs[0])
    kept.files.write(refs[3], PLAIN)
    assert kept.names == [*sorted(f"id-{number}-{HERE}.schema" for number in (0, 2, 3)), "mine.avsc"]
    size = next(kept.folder.glob("id-3-*")).stat().st_size
    monkeypatch.setattr(schemas_on_disk, "MAX_FOLDER_BYTES", 2 * size)
    kept.files.write(refs[4], PLAIN)
    assert kept.names == [*sorted(f"id-{number}-{HERE}.schema" for number in (3, 4)), "mine.avsc"]


def test_what_is_larger_than_a_file_may_be_is_not_kept(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema larger than a file may be is not kept."""
    monkeypatch.setattr(schemas_on_disk, "MAX_SCHEMA_BYTES", 300)
    kept.files.write(ID, {**PLAIN, "doc": "x" * 300})
    assert kept.names == []


WRITER = """
import sys, time
from pathlib import Path
from consumer.adapters import schemas_on_disk
from consumer.adapters.schemas_on_disk import SchemaFiles
from consumer.engine.model import SchemaRef

schemas_on_disk.MAX_FILES = 5
files = SchemaFiles(Path(sys.argv[1]), sys.argv[2])
for turn in range(150):
    ref = SchemaRef("id", str(turn % 8))
    files.write(ref, {"name": ref.value, "doc": sys.argv[3] * 5_000})
    found = files.read(ref)  # it may be removed already
    assert found is None or (found["name"] == ref.value and len(set(found["doc"])) == 1), found
    if turn % 50 == 49:
        files.remove_all()
"""


def test_many_processes_use_one_folder(kept: Kept) -> None:
    """While several processes write, read and remove, every schema that is read is whole, and the limit holds."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(kept.folder), HERE, letter]) for letter in "abc"
    ]
    assert [one.wait(60) for one in writers] == [0, 0, 0]
    assert len(kept.names) <= 7  # two of them may each have written one more after the last check
    assert not [name for name in kept.names if name.startswith(".")]


@pytest.fixture(autouse=True)
async def _no_task_is_left() -> AsyncIterator[None]:
    yield
    assert len(asyncio.all_tasks()) == 1
