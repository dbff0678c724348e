"""Apache Kafka on this machine, for tests and benchmarks: one node (KRaft), on loopback, gone afterwards.

Maven resolves the jars once (`pom.xml`, into ``target/lib``); later starts need no network. A start copies a formatted
log directory, starts ``kafka.Kafka`` in it and waits, bounded, until it answers. Formatted directories, and an archive
of the classes that a start loads, are made once beside the jars, since they take three quarters of a start's CPU time.
The configuration is that of a production broker except for what makes a test slow: no initial
rebalance delay, short session time-outs allowed, internal topics with one partition and one replica, a small heap.

Two ways to use it:

* `RealBroker` is a broker of one's own: start, stop, kill, pause (SIGSTOP), resume, restart on the same ports.
* `shared_broker` hands the same broker to all processes of a test run: `tests.support.keeper`.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from tests.support import keeper
from tests.support.keeper import ANSWER_SECONDS, OwnServer, Unavailable
from tests.support.maven import fetched

HERE = Path(__file__).resolve().parent
TARGET = HERE / "target"
NEWEST, OLD = "pom.xml", "pom-2.8.xml"
"""The brokers there are: each has its jars in a folder of its own below `TARGET`."""
NAME = "broker"
"""The name of the run's broker."""

SASL_USER = "pinstream"
SASL_PASSWORD = "only-for-tests"  # the SASL listener's one user; the broker lives on loopback for minutes

_JVM = ["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto"]
_ARCHIVE = "classes.jsa"
_QUIET = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Djava.awt.headless=true"]


def ensure_jars(pom: str = NEWEST) -> Path:
    """The folder with a Kafka's jars, which Maven resolves if they are missing. Raises `Unavailable`."""
    folder = TARGET / ("lib" if pom == NEWEST else Path(pom).stem)
    return fetched(HERE / pom, "dependency:copy-dependencies", folder)


class RealBroker(OwnServer):
    """A Kafka broker of the newest version."""

    what = "Kafka"
    jars = NEWEST

    def __init__(self, directory: Path | None = None, **settings: str | int) -> None:
        """`settings`: properties of this broker, with underscores for dots."""
        super().__init__(directory)
        self.settings = {name.replace("_", "."): value for name, value in settings.items()}
        plain, sasl, controller = free_ports(3)
        self._controller = f"127.0.0.1:{controller}"
        self.bootstrap_servers = f"127.0.0.1:{plain}"
        self.sasl_bootstrap_servers = f"127.0.0.1:{sasl}"
        """SASL_PLAINTEXT with PLAIN, `SASL_USER` and `SASL_PASSWORD`."""

    def beside(self, number: int, **settings: Any) -> RealBroker:
        """Return a further broker of this one's cluster, not started yet. `number`: its id, 2 or more."""
        other = RealBroker(**settings)
        own = f"PLAINTEXT://{other.bootstrap_servers},SASL://{other.sasl_bootstrap_servers}"
        other.settings |= {
            "process.roles": "broker",
            "node.id": number,
            "controller.quorum.voters": self.properties()["controller.quorum.voters"],
            "listeners": own,
            "advertised.listeners": own,
        }
        return other

    def start(self) -> Self:
        """Format the log directory and start; returns when the broker answers. Raises `Unavailable`."""
        self._jars = ensure_jars(self.jars)
        self._write_properties(self.directory / "logs")
        self._format()
        if self.jars == NEWEST:
            self._archive_classes()
        self._run()
        return self

    def kill(self) -> None:
        """Send SIGKILL. `restart` starts the broker again."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again, on the same ports with the same data."""
        self._end(signal.SIGTERM)
        self._run()

    def replace(self) -> None:
        """Put another cluster in its place: kill it, and start a broker without data on the same ports."""
        self._end(signal.SIGKILL)
        shutil.rmtree(self.directory / "logs")
        self._format("pinstreamTestClusterB")
        self._run()

    def pause(self) -> None:
        """Stop it: connections stay, and nothing is answered."""
        if self._process is not None:
            keeper.freeze(self._process)

    def resume(self) -> None:
        """Send SIGCONT."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    @property
    def pid(self) -> int:
        """The id of the Java process."""
        if self._process is None:
            raise Unavailable("the broker is not running")
        return self._process.pid

    def properties(self) -> dict[str, str | int]:
        """The properties of all brokers of the tests; `settings` override them."""
        listeners = f"PLAINTEXT://{self.bootstrap_servers},SASL://{self.sasl_bootstrap_servers}"
        jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required"
        user = f'user_{SASL_USER}="{SASL_PASSWORD}"'
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{self._controller}",
            "listeners": f"{listeners},CONTROLLER://{self._controller}",
            "advertised.listeners": listeners,
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": f"{jaas} {user};",
            # A restarted node waits until the controller has given up its former self.
            "broker.session.timeout.ms": 1500,
            "broker.heartbeat.interval.ms": 300,
            "auto.create.topics.enable": "false",
            "default.replication.factor": 1,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 500,
            "group.consumer.min.session.timeout.ms": 1000,
            "group.consumer.session.timeout.ms": 6000,
            "group.consumer.min.heartbeat.interval.ms": 100,
            "group.consumer.heartbeat.interval.ms": 200,
            "offsets.topic.num.partitions": 1,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.abort.timed.out.transaction.cleanup.interval.ms": 1000,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "log.cleaner.dedupe.buffer.size": 8 << 20,
            "log.cleaner.backoff.ms": 200,
            "log.segment.bytes": 64 << 20,
            # Tests write records of years ago; half a minute after its start the broker would remove them.
            "log.retention.ms": -1,
            "num.network.threads": 2,
            "num.io.threads": 2,
            "controlled.shutdown.enable": "false",
        }

    def java_options(self) -> Sequence[str]:
        """Options of its Java machine beside the common ones."""
        return ()

    def _write_properties(self, logs: Path) -> None:
        properties = self.properties() | self.settings | {"log.dirs": str(logs)}
        text = "".join(f"{name}={value}\n" for name, value in properties.items())
        (self.directory / "server.properties").write_text(text)

    def _format(self, cluster: str = "pinstreamTestClusterA") -> None:
        """Format the log directory: the tool is a Java machine of its own, so it runs once for a cluster's node."""
        node = (self.properties() | self.settings)["node.id"]
        formatted = self._jars / f"{cluster}-{node}"
        if not formatted.is_dir():
            draft = Path(tempfile.mkdtemp(prefix="formatting-", dir=self._jars))
            self._write_properties(draft)
            main = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c"]
            command = self._java(*main, str(self.directory / "server.properties"), "--ignore-formatted")
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
            )
            if done.returncode != 0:
                raise Unavailable(
                    f"kafka storage format failed: {(done.stdout + done.stderr).strip()[-500:]}"
                )
            with contextlib.suppress(OSError):  # another process was faster
                draft.rename(formatted)
            self._write_properties(self.directory / "logs")
        shutil.copytree(formatted, self.directory / "logs", dirs_exist_ok=True)

    def _archive_classes(self) -> None:
        """Start and stop once for all brokers, to keep the classes that a start loads."""
        archive, draft = self._jars / _ARCHIVE, self._jars / f"new-{_ARCHIVE}"
        with keeper.locked(self._jars / "archive.lock"):
            if archive.exists():
                return
            self._run(f"-XX:ArchiveClassesAtExit={draft}")
            process, self._process = self._process, None
            keeper.end(process, signal.SIGTERM, ANSWER_SECONDS)
            if process is None or process.returncode == -signal.SIGKILL or not draft.exists():
                draft.unlink(missing_ok=True)
                draft.touch()  # Java ignores it: it starts as it would without one, and nobody tries again
            draft.rename(archive)

    def _run(self, *options: str) -> None:
        self._launch(self._java(*options, "kafka.Kafka", str(self.directory / "server.properties")))

    def _answers(self) -> bool:
        return answers(self.bootstrap_servers)

    def _java(self, *arguments: str) -> list[str]:
        archive = self._jars / _ARCHIVE
        archived = [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []
        options = [*_JVM, *_QUIET, *archived, *self.java_options(), "-cp", f"{self._jars}/*"]
        return [shutil.which("java") or "java", *options, *arguments]


def answers(bootstrap_servers: str) -> bool:
    """Whether a broker answers there (one attempt, two seconds)."""
    config: dict[str, str | int | float | bool] = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
    try:
        return bool(AdminClient(config).list_topics(timeout=2).brokers)
    except KafkaException:
        return False


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.05) -> bool:
    """Poll `condition` until it holds; False if it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(pause)
    return False


def free_ports(count: int) -> list[int]:
    """`count` ports that are free now; all are bound at once, so that they differ.

    Linux takes the ports of outgoing connections from 32768 on. These lie below, so that no client gets one of them
    while its server starts or is down.
    """
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(ports) < count:
            port = 20_000 + secrets.randbelow(12_000)  # seeds would be the same in each process
            with contextlib.suppress(OSError):  # in use
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
    return ports


# -------------------------------------------------------------------- one broker for all processes of a run


def shared_broker(directory: Path, parent: int) -> dict[str, str]:
    """The run's broker, started by the first to ask: ``bootstrap_servers`` and ``sasl_bootstrap_servers``.

    `directory` is common to the run's processes; the broker ends when process `parent` does.
    Raises `Unavailable`.
    """
    ensure_jars()
    return keeper.shared(directory, NAME, "tests.support.kafka.broker", parent)


@contextlib.contextmanager
def _kept() -> Iterator[dict[str, str]]:
    with RealBroker() as broker:
        yield {
            "bootstrap_servers": broker.bootstrap_servers,
            "sasl_bootstrap_servers": broker.sasl_bootstrap_servers,
            "broker": str(broker.pid),
        }


if __name__ == "__main__":
    keeper.keep("a Kafka broker", _kept)
