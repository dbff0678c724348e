"""Fixtures that all tests may use: above all, Kafka.

`kafka` is one broker for the whole run, also when pytest-xdist runs it in several processes. Which one:

1. ``KAFKA_BOOTSTRAP_SERVERS``, if it is set: an *external* broker, which we do not touch otherwise;
2. a *real* Apache Kafka of our own, if Java and Maven (or its jars, from an earlier run) are there;
3. the *embedded* broker of the demo, behind a front (`tests.support.kafka.front`). Tests marked ``real_kafka`` are
   then skipped by name; in CI that would pass for tested, so there the run fails instead.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
from hypothesis import settings

from tests.support import keeper
from tests.support.kafka.broker import NAME as BROKER
from tests.support.kafka.broker import RealBroker, shared_broker
from tests.support.kafka.front import fronted_broker
from tests.support.kafka.harness import Kafka, create_topic
from tests.support.kafka.old import OldBroker
from tests.support.kafka.secured import SecuredBroker
from tests.support.keeper import Unavailable
from tests.support.redis_server import RedisServer, redis_server
from tests.support.registry.apicurio import NAME as REGISTRY
from tests.support.registry.apicurio import SecuredRegistry, shared_registry

EXTERNAL = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "")
IN_CI = os.environ.get("CI", "").lower() == "true"

_EXTERNAL_NOTE = (
    f"kafka: the external broker {EXTERNAL}: KAFKA_BOOTSTRAP_SERVERS is set; unset it to start one here"
)
_Broker = TypeVar("_Broker", bound=RealBroker)

_RUN_DIRECTORY = pytest.StashKey[Path]()
_RUN_PID = pytest.StashKey[int]()
_NOT_RUN = pytest.StashKey[int]()
_KEY = "pinstream_run"
_PARTS = 5
"""CI divides the files that have slow tests into this number of parts, a part a day."""

_HERE = Path(__file__).parent
# A busy machine is no failure of an example: what may not take long has a limit of its own.
settings.register_profile("pinstream", deadline=None)
settings.load_profile("pinstream")

_BROKERS = frozenset({"kafka", "embedded_kafka", "own_kafka", "old_kafka", "secured_kafka", "each_kafka"})
"""The fixtures that start a broker, or ask for one."""
_REGISTRIES = frozenset({"real_registry", "secured_registry", "each_registry"})
"""The fixtures that start a real schema registry: their tests run in one step with those of the brokers."""
_OF_A_MODULE = ("own_kafka", "old_kafka", "secured_kafka", "secured_registry", 'scope="module"')
"""What a test file has whose tests share a set-up: they stay in one process."""
_ANY_OTHER = "*"
_TURNS = (
    "image",
    "runbook",
    "benchmark",
    "end_to_end",
    "adapters",
    "commands",
    "web",
    _ANY_OTHER,
    "simulation",
    "conversion",
    "avro",
    "engine",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what `make test-all` and CI ask for: the slow tests too, or a part of the slow ones alone."""
    parser.addoption("--all", action="store_true", help="with the tests that are marked slow")
    parser.addoption(
        "--slow-part", type=int, metavar="N", help=f"only slow tests, of the files of part N of {_PARTS}"
    )
    parser.addoption("--reverse", action="store_true", help="files in reverse order: no test needs another")


def pytest_configure(config: pytest.Config) -> None:
    """Make a directory for all processes of this run, and record the process that they belong to."""
    gc.disable()  # until all tests are found, of which none is garbage: a third of the time of that
    worker: dict[str, Any] | None = getattr(config, "workerinput", None)
    if worker is None:
        directory, pid = tempfile.mkdtemp(prefix="pinstream-tests-"), os.getpid()
    else:
        directory, pid = worker[_KEY]
        if _computes(worker["workerid"], worker["workercount"]):
            os.nice(5)
    config.stash[_RUN_DIRECTORY] = Path(directory)
    config.stash[_RUN_PID] = pid


def pytest_collection_finish() -> None:
    """Collect garbage from now on, and look no more at what was found until now."""
    gc.freeze()
    gc.enable()


def pytest_report_header() -> str | None:
    """Report that the tests use an external broker: the variable may be set for something else."""
    return _EXTERNAL_NOTE if EXTERNAL else None


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what uses a broker, deselect what is slow, and order the rest.

    What waits for processes and brokers comes first, what only computes last. What stays in one process, and what has
    a time limit of its own, takes long: it comes before its neighbours. A long test that began last would keep all
    processes waiting, and those that wait leave the processors to each other.
    """
    for item in items:
        asks = (_BROKERS | _REGISTRIES).intersection(getattr(item, "fixturenames", ()))
        if asks or item.get_closest_marker("real_kafka"):
            item.add_marker(pytest.mark.kafka)
        if _folder(item.path) == "simulation":
            item.add_marker(pytest.mark.simulation)
    not_run = [item for item in items if not _is_wanted(item, config)]
    if not_run:
        config.hook.pytest_deselected(items=not_run)
        items[:] = [item for item in items if _is_wanted(item, config)]
    _count_not_run(config, len(not_run))
    items.sort(key=_rank)
    if config.getoption("--reverse"):
        items.reverse()


def _is_wanted(item: pytest.Item, config: pytest.Config) -> bool:
    slow = item.get_closest_marker("slow") is not None
    part: int | None = config.getoption("--slow-part")
    if part is None:
        return not slow or bool(config.getoption("--all"))
    file = item.nodeid.partition("::")[0]
    return slow and zlib.crc32(file.encode()) % _PARTS == part % _PARTS


def _count_not_run(config: pytest.Config, number: int) -> None:
    config.stash[_NOT_RUN] = number
    if hasattr(config, "workeroutput"):  # pytest-xdist: each process finds all tests
        config.workeroutput[_KEY] = number


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take from a process of pytest-xdist, which has ended, how many tests it did not run."""
    node.config.stash[_NOT_RUN] = getattr(node, "workeroutput", {}).get(_KEY, 0)


def _rank(item: pytest.Item) -> tuple[int, bool, bool]:
    file = item.nodeid.partition("::")[0]
    return _turn(item.path), _is_divided(file), item.get_closest_marker("timeout") is None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Divide the tests so that those that wait and those that compute run beside each other.

    The tests of a file stay in one process, except where all of them wait for Kafka and share only the run's servers:
    such a file takes minutes, and its tests go to whichever process is free. One process in four takes the tests from
    the end of the list, and has less of the processors than those that wait (`_computes`).
    """
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class Division(LoadScopeScheduling):  # type: ignore[misc]  # the package has no types
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            if _computes(node.gateway.id, self.numnodes):
                self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
            super()._assign_work_unit(node)

    return Division(config, log)


def _computes(worker: str, workers: int) -> bool:
    """Whether this process begins with the tests that only compute."""
    return int(worker.removeprefix("gw")) >= workers - workers // 4


def _together(nodeid: str) -> str:
    """What the tests that stay in one process have in common. Two benchmarks at once would measure each other."""
    file = nodeid.partition("::")[0]
    if _folder(_HERE.parent / file) == "benchmark":
        return "benchmark"
    return nodeid if _is_divided(file) else file


@cache
def _is_divided(file: str) -> bool:
    path = _HERE.parent / file
    if _folder(path) not in ("end_to_end", "simulation") and path.parts[-2] != "kafka":
        return False
    text = path.read_text()
    return not any(shared in text for shared in _OF_A_MODULE)


def _turn(path: Path) -> int:
    """The order of a test file; lower is earlier. Files of one number keep their order."""
    folder = _folder(path)
    return _TURNS.index(folder) if folder in _TURNS else _TURNS.index(_ANY_OTHER)


def _folder(path: Path) -> str:
    """The first part of a test file's path below this folder."""
    return path.relative_to(_HERE).parts[0] if path.is_relative_to(_HERE) else ""


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give pytest-xdist's new worker the run's directory."""
    node.workerinput[_KEY] = (str(node.config.stash[_RUN_DIRECTORY]), node.config.stash[_RUN_PID])


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Let a part be empty: the files of a folder may all belong to the others."""
    if (
        exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
        and session.config.getoption("--slow-part") is not None
    ):
        session.exitstatus = pytest.ExitCode.OK


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the broker and the registry in the run's main process, after all workers."""
    if getattr(config, "workerinput", None) is None and _RUN_DIRECTORY in config.stash:
        directory = config.stash[_RUN_DIRECTORY]
        for name in (BROKER, REGISTRY):
            keeper.stop(directory, name)
        shutil.rmtree(directory, ignore_errors=True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was not tested and why, and the figures that tests have recorded (`record_property("figure", …)`)."""
    if EXTERNAL:
        terminalreporter.write_line(_EXTERNAL_NOTE)  # again: with -q there is no header
    recorded = [
        value
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == "figure"
    ]
    if recorded:
        terminalreporter.section("measured")
    for line in recorded:
        terminalreporter.write_line(str(line))
    not_tested = [
        f"{number} skipped: {reason}" for reason, number in _skipped(terminalreporter).most_common()
    ]
    if number := config.stash.get(_NOT_RUN, 0):
        not_tested.append(f"{number} not run: slow; make test-all runs them")
    if not_tested:
        terminalreporter.section("not tested")
    for line in not_tested:
        terminalreporter.write_line(line)


def _skipped(reporter: pytest.TerminalReporter) -> Counter[str]:
    """How many tests were skipped for each reason, without what only one of them says behind the colon."""
    reasons: Counter[str] = Counter()
    for report in reporter.getreports("skipped"):
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[text.removeprefix("Skipped: ").strip().splitlines()[0]] += 1
    return reasons


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server for all tests of this process that do not harm it; each test uses names of its own."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="session")
def kafka(pytestconfig: pytest.Config) -> Iterator[Kafka]:
    """The run's broker."""
    if EXTERNAL:
        yield Kafka(EXTERNAL, "external")
        return
    try:
        found = shared_broker(pytestconfig.stash[_RUN_DIRECTORY], pytestconfig.stash[_RUN_PID])
    except Unavailable as error:
        _not_in_ci(error)
        yield from _embedded()
    else:
        yield Kafka(found["bootstrap_servers"], "real", found["sasl_bootstrap_servers"])


@pytest.fixture(scope="session")
def embedded_kafka() -> Iterator[Kafka]:
    """The embedded broker, whichever broker `kafka` is."""
    yield from _embedded()


@pytest.fixture(scope="session")
def started() -> Callable[[RealBroker], AbstractContextManager[RealBroker]]:
    """``with started(broker):`` for modules that have brokers of another kind. Skipped if none can be started."""
    return _started


@pytest.fixture(scope="module")
def own_kafka() -> Iterator[RealBroker]:
    """A real broker for this module alone: its tests may pause, kill and restart it. Skipped without one."""
    with _started(RealBroker()) as broker:
        yield broker


@pytest.fixture(scope="module")
def old_kafka() -> Iterator[Kafka]:
    """Kafka 2.8 with a ZooKeeper, for this module alone. Skipped without one."""
    with _started(OldBroker()) as broker:
        yield Kafka(broker.bootstrap_servers, "real")


@pytest.fixture(scope="module")
def secured_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    """A real broker with TLS, logins and an authorizer, for this module alone; its users have no rights yet."""
    with _started(SecuredBroker(tmp_path_factory.mktemp("secured"))) as broker:
        broker.add_scram_users()
        yield broker


@pytest.fixture(params=["kafka", "embedded_kafka"])
def each_kafka(request: pytest.FixtureRequest) -> Kafka:
    """For contracts that both brokers must keep: a test with this runs on the run's broker and on the embedded one."""
    found: Kafka = request.getfixturevalue(request.param)
    if request.param == "kafka" and found.kind == "embedded":
        pytest.skip("no Kafka but the embedded broker, which the other variant runs on")
    return found


@pytest.fixture(scope="session")
def real_registry(pytestconfig: pytest.Config) -> str:
    """The address of the run's schema registry (Apicurio): its tests use subjects of their own. Skipped without one."""
    try:
        return shared_registry(pytestconfig.stash[_RUN_DIRECTORY], pytestconfig.stash[_RUN_PID])
    except Unavailable as error:
        _not_in_ci(error)
        pytest.skip(f"needs a schema registry (Java and Maven): {error}")


@pytest.fixture(scope="module")
def secured_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredRegistry]:
    """A registry with TLS and logins, for this module alone: its tests may stop it and start it again."""
    try:
        with SecuredRegistry(tmp_path_factory.mktemp("registry")) as registry:
            yield registry
    except Unavailable as error:
        _not_in_ci(error)
        pytest.skip(f"needs a schema registry (Java and Maven): {error}")


@pytest.fixture
def topic(kafka: Kafka) -> Callable[..., str]:
    """``topic(partitions=1, **settings)`` creates a topic with a name of its own and returns the name.

    Settings: ``cleanup_policy="compact"``, … On the embedded broker each topic has four partitions, whatever is
    asked for, and no settings.
    """

    def make(partitions: int = 1, **settings: str) -> str:
        return create_topic(kafka, partitions, **settings)

    return make


@pytest.fixture(autouse=True)
def _log_of_its_own() -> Iterator[None]:
    """Restore the log after a test that set it up, to a stream that has ended with the test."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _real_kafka(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("real_kafka") is None:
        return
    found: Kafka = request.getfixturevalue("kafka")
    if found.kind == "embedded":
        pytest.skip("needs a real Kafka broker (Java and Maven, or KAFKA_BOOTSTRAP_SERVERS)")


@contextmanager
def _started(broker: _Broker) -> Iterator[_Broker]:
    try:
        broker.__enter__()
    except Unavailable as error:
        _not_in_ci(error)
        pytest.skip(f"needs a Kafka broker of its own: {error}")
    try:
        yield broker
    finally:
        broker.stop()


def _not_in_ci(error: Unavailable) -> None:
    if IN_CI:
        pytest.fail(
            f"a server is missing in CI, where no test may be skipped for that: {error}", pytrace=False
        )


def _embedded() -> Iterator[Kafka]:
    with fronted_broker() as address:
        yield Kafka(address, "embedded")
