"""The systems that are measured: how each is started for a job, and what it lacks. Nothing here measures.

A `System` gets a `Job` (which topic, which sink, which folder for its state) and gives the command that does it. A
system that cannot be had on this machine says why (`Unavailable`), and the report says it too.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import confluent_kafka

from benchmarks.load import SCHEMA
from tests.support.redis_server import PROGRAM, RedisServer, redis_server
from tests.support.switches import switched

ROOT = Path(__file__).resolve().parent.parent
_RIVALS = ROOT / ".venv-bench"
_RIVALS_PYTHON = _RIVALS / "bin" / "python"
_BENTHOS = ROOT / "benchmarks" / "rivals" / "benthos"
_FLOOR = ROOT / "benchmarks" / "floor"
_OURS = ("KAFKA_", "PINSTREAM_", "PINTEREST_", "SCHEMA_REGISTRY_")
_BUILD_SECONDS = 600.0


class Unavailable(Exception):
    """This system cannot be used on this machine; the text says what is missing."""


@dataclass(frozen=True)
class Job:
    """From which topic to which sink, as which consumer group, with which folder for its state."""

    bootstrap: str
    topic: str
    group: str
    url: str
    state: Path
    server: str = ""
    """The address of what `System.server` started."""
    quota: bool = False
    """Whether the platform's quota of calls holds; it is what would bound a run over a full topic."""


@dataclass(frozen=True)
class Command:
    """What to start: arguments, and the whole environment."""

    arguments: list[str]
    environment: dict[str, str]


class System(ABC):
    """One measured system."""

    key: ClassVar[str]
    """The system's name in the JSON file."""
    name: ClassVar[str]
    how: ClassVar[str]
    """How the system does the job."""
    lacks: ClassVar[str]
    """What pinstream does of the job and this system does not."""
    full: ClassVar[bool] = True
    """Whether it is also run over a full topic."""
    members: ClassVar[int] = 1
    """How many members of its group it has."""

    @abstractmethod
    def prepare(self) -> str:
        """Prepare the system and return its version; raises `Unavailable`."""

    def server(self) -> AbstractContextManager[RedisServer | None]:
        """A server that it needs beside it."""
        return nullcontext()

    @abstractmethod
    def command(self, job: Job) -> Command:
        """The command that starts it for `job`."""


@dataclass(frozen=True)
class Pinstream(System):
    """``pinstream run`` as users start it, with durable key store, page and metrics."""

    workers: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    """Settings beside those that a job needs."""

    key: ClassVar[str] = "pinstream"
    name: ClassVar[str] = "pinstream"
    how: ClassVar[str] = (
        "`pinstream run` with its defaults: key store on disk, page, metrics; full batches without a quota of calls"
    )
    lacks: ClassVar[str] = ""

    def prepare(self) -> str:
        if self.workers > 1 and not _has_workers():
            raise Unavailable("this pinstream has no `run --workers`")
        return importlib.metadata.version("pinstream")

    def command(self, job: Job) -> Command:
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": job.bootstrap,
            "KAFKA_TOPICS": job.topic,
            "KAFKA_GROUP_ID": job.group,
            "PINTEREST_AD_ACCOUNT_ID": "1",
            "PINTEREST_ACCESS_TOKEN": "benchmark",
            "PINTEREST_API_URL": job.url,
            **({} if job.quota else {"PINSTREAM_CALLS_PER_MINUTE": "1000000"}),
            "PINSTREAM_STATE_DIR": str(job.state),
            "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0",
            "PINSTREAM_LOG_LEVEL": "warning",
            **self.settings,
        }
        workers = ["--workers", str(self.workers)] if self.workers > 1 else []
        return Command([sys.executable, "-m", "consumer", "run", *workers], _environment(settings))


class WithRedis(Pinstream):
    """The same with its keys in a Redis, as members on several machines share them."""

    key = "redis"
    name = "pinstream, Redis"
    how = "the same with `PINSTREAM_KEY_STORE=redis://…`: a server on this machine, `appendonly yes`"

    def prepare(self) -> str:
        if PROGRAM is None:
            raise Unavailable("no redis-server (Debian's package of that name)")
        return super().prepare()

    @contextmanager
    def server(self) -> Iterator[RedisServer]:
        arguments = ("--appendonly", "yes", "--maxmemory-policy", "noeviction")
        with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder), *arguments) as server:
            yield server

    def command(self, job: Job) -> Command:
        command = super().command(job)
        return Command(command.arguments, {**command.environment, "PINSTREAM_KEY_STORE": job.server})


class WithWorkers(Pinstream):
    """The same as two members on this machine. With full batches the growth benchmark measures them."""

    key = "workers"
    name = "pinstream, 2 workers"
    how = "the same with `--workers 2`"
    full = False
    members = 2

    def __init__(self) -> None:
        super().__init__(workers=self.members)


class TwoStepSystem(Pinstream):
    """The same without the fast path."""

    key = "two_steps"
    name = "pinstream, two steps"
    how = "the same as if it had been built without a C compiler"

    def command(self, job: Job) -> Command:
        command = super().command(job)
        python, _, _, *rest = command.arguments
        switches = switched(compiled=False)
        return Command([python, "-m", "tests.support.switches", *rest], {**command.environment, **switches})


@dataclass(frozen=True)
class Plain(System):
    """The consumer that one writes first."""

    schema: Path = SCHEMA
    mapping: Path | None = None
    """For a schema other than the product's own (`benchmarks.rivals.mapped`)."""

    key: ClassVar[str] = "plain"
    name: ClassVar[str] = "plain consumer"
    how: ClassVar[str] = (
        "confluent-kafka, fastavro, walks along paths, aiohttp; one call of 1,000 after the other"
    )
    lacks: ClassVar[str] = (
        "verdicts per event, deduplication, dead letters, retries, quota, budget, rebalances, drain"
    )

    def prepare(self) -> str:
        return f"confluent-kafka {importlib.metadata.version('confluent-kafka')}"

    def command(self, job: Job) -> Command:
        more = [] if self.mapping is None else [str(self.mapping)]
        return _python(sys.executable, "plain", job, *more, schema=self.schema)


class FastStream(System):
    """FastStream's batch subscriber."""

    key = "faststream"
    name = "FastStream"
    how = "a batch subscriber over confluent-kafka, acknowledged after the call; converts as the plain consumer does"
    lacks = "verdicts per event, deduplication, dead letters, quota, budget; reads a failed batch again, all of it"

    def prepare(self) -> str:
        return _rival_version("faststream")

    def command(self, job: Job) -> Command:
        return _python(str(_RIVALS_PYTHON), "faststream_consumer", job)


class Quix(System):
    """Quix Streams' dataframe and batching sink."""

    key = "quix"
    name = "Quix Streams"
    how = "a dataframe and a batching sink, a checkpoint every 4,000; converts as the plain consumer does"
    lacks = "verdicts per event, deduplication of delivered events, dead letters, quota, budget in bytes"

    def prepare(self) -> str:
        return _rival_version("quixstreams")

    def command(self, job: Job) -> Command:
        return _python(str(_RIVALS_PYTHON), "quix_consumer", job, str(job.state))


class Benthos(System):
    """Benthos in Go: the engine of Redpanda Connect, with its configuration language."""

    key = "benthos"
    name = "Benthos (Go)"
    how = (
        "the engine of Redpanda Connect: its mapping language, batches and HTTP output, 8 calls at once; Kafka input "
        "(franz-go) and Avro decoder (hamba/avro) are ours, since Redpanda Connect's own cannot be had here"
    )
    lacks = "verdicts per event, deduplication tied to the commit, dead letters, quota, budget in bytes"

    def prepare(self) -> str:
        if shutil.which("go") is None:
            raise Unavailable("no `go` on the PATH to build it with")
        command = ["go", "build", "-o", str(self._binary), "."]
        self._binary.parent.mkdir(exist_ok=True)
        try:
            done = subprocess.run(
                command, cwd=_BENTHOS, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"`go build` took longer than {_BUILD_SECONDS:.0f} s") from error
        if done.returncode != 0:
            raise Unavailable(f"`go build` failed: {done.stderr.strip()[-300:]}")
        module = next(
            line for line in (_BENTHOS / "go.mod").read_text().splitlines() if "benthos/v4 v" in line
        )
        return module.split()[-1]

    def command(self, job: Job) -> Command:
        environment = {
            "BROKER": job.bootstrap,
            "TOPIC": job.topic,
            "GROUP": job.group,
            "URL": job.url,
            "SCHEMA": str(SCHEMA),
        }
        arguments = [str(self._binary), "run", str(_BENTHOS / "config.yaml")]
        return Command(arguments, _environment(environment))

    @property
    def _binary(self) -> Path:
        return ROOT / "artifacts" / "benthos"


class Floor(System):
    """The least that the job can cost: one C program for the benchmark's schema, on pinstream's own librdkafka."""

    key = "floor"
    name = "floor (C)"
    how = (
        "one C program for this schema only, over the librdkafka that pinstream uses; one call of 1,000 after the "
        "other; sends the same bytes as pinstream, and writes 20 bytes a key to a log, synced before a commit"
    )
    lacks = "all of it but the bytes: any other schema or value ends it, and so does any error"

    def prepare(self) -> str:
        self.binary.parent.mkdir(exist_ok=True)
        build_floor(self.binary, "-march=native")
        return f"librdkafka {confluent_kafka.libversion()[0]}"

    def command(self, job: Job) -> Command:
        url = urlsplit(job.url)
        api = [str(url.hostname), str(url.port), f"{url.path}/ad_accounts/1/events"]
        arguments = ["run", job.bootstrap, job.topic, job.group, *api, str(job.state / "keys")]
        return Command([str(self.binary), *arguments], _environment({}))

    @property
    def binary(self) -> Path:
        """What `prepare` builds."""
        return ROOT / "artifacts" / "floor"


def build_floor(binary: Path, *options: str) -> None:
    """Compile the floor, linked with the librdkafka that confluent-kafka brought; raises `Unavailable`.

    Without ``-march=native`` it does without the instructions that only some processors have, for SHA-256 above all.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise Unavailable("no C compiler on the PATH to build it with")
    # A wheel brings its own library. Where it was built from source, the system's is the one in use.
    brought = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs").glob("librdkafka*.so*")
    library = next((str(path) for path in brought), "-lrdkafka")
    command = [compiler, "-std=gnu11", "-D_GNU_SOURCE", "-O3", *options]
    without_avx = ["-mno-avx"] if platform.machine() == "x86_64" else []  # sha256.c says why
    hashes = str(binary.with_suffix(".o"))
    _compile([*command, *without_avx, "-c", "-o", hashes, str(_FLOOR / "sha256.c")])
    command += ["-o", str(binary), str(_FLOOR / "floor.c"), hashes]
    _compile([*command, library, f"-Wl,-rpath,{os.path.dirname(library) or '.'}"])


def _compile(command: Sequence[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"`{command[0]}` failed: {error}") from error
    if done.returncode != 0:
        raise Unavailable(f"`{command[0]}` failed: {done.stderr.strip()[-300:]}")


SYSTEMS: tuple[System, ...] = (
    Pinstream(),
    WithRedis(),
    WithWorkers(),
    Plain(),
    FastStream(),
    Quix(),
    Benthos(),
    Floor(),
)


def _python(python: str, module: str, job: Job, *more: str, schema: Path = SCHEMA) -> Command:
    arguments = [job.bootstrap, job.topic, job.group, job.url, str(schema), *more]
    return Command([python, "-m", f"benchmarks.rivals.{module}", *arguments], _environment({}))


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Our environment without any settings of pinstream."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**inherited, **more}


def _rival_version(distribution: str) -> str:
    code = f"import importlib.metadata as m; print(m.version({distribution!r}))"
    if not (_RIVALS / ".ready").exists():  # written last: what was installed halfway is no rival
        raise Unavailable("no .venv-bench, or half of one: `make bench` sets it up")
    done = subprocess.run(
        [_RIVALS_PYTHON, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise Unavailable(
            f"{distribution} is not in .venv-bench: remove the folder and run `make bench` again"
        )
    return done.stdout.strip()


def _has_workers() -> bool:
    command = [sys.executable, "-m", "consumer", "run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return "--workers" in done.stdout
