"""What a command loads: what it does not need is not imported, so that it begins soon and takes little memory."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.faults.test_start import absent, environment
from tests.end_to_end.processes import ROOT, Process, bare_environment

COMMAND_LINE = {
    "consumer",
    "consumer.__main__",
    "consumer.commands",
    "consumer.commands.base",
    "consumer.errors",
}
UNUSED = {
    "authlib", "boto3", "botocore", "fastavro", "httpx", "opentelemetry", "phonenumbers", "prometheus_client",
    "redis", "requests", "rich",
}  # fmt: skip
"""Packages that a member with its store on disk, schemas from a folder, and no export and no scrape does not use."""
OF_OTHERS = ("consumer.demo", "consumer.workers", "consumer.commands", "consumer.adapters.key_store.shared")
LIBRARIES = """
import sys
sys.modules["rich"] = None  # as `run` imports structlog
import aiohttp.web, confluent_kafka.admin, orjson, pydantic, pycountry, structlog
print("loaded", flush=True)
sys.stdin.read()
"""
MAX_OF_LIBRARIES = 1.7
"""Of what its libraries take, the private memory that an idle member may take. It takes 1.55."""
MEMBER = """
import asyncio, os
from consumer.commands.run import import_structlog
import_structlog()
from consumer.adapters.kafka.source import KafkaSource
from consumer.app.run import load, member

async def start():
    async with member(load(os.environ)) as one:
        assert await one.serve_page()
        await one.open()

asyncio.run(start())
"""


def loaded(script: str, env: dict[str, str]) -> set[str]:
    """The modules that are loaded after `script`, in a process of its own."""
    program = f"import atexit, sys\natexit.register(lambda: print(*sys.modules, file=sys.stderr))\n{script}"
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())


def packages(modules: set[str]) -> set[str]:
    """What is not Python's own."""
    found = {name.partition(".")[0] for name in modules if not name.startswith("_sysconfigdata")}
    return found - sys.stdlib_module_names


@pytest.mark.parametrize("words", ["--version", "--help", "run --help", "check --help", "explain --help"])
def test_help_loads_only_the_command_line(words: str, tmp_path: Path) -> None:
    """click and the texts; not even asyncio. Those of `run` and `check` have the settings and what makes them, too."""
    script = f"sys.argv[1:] = {words.split()!r}\nfrom consumer.__main__ import enter\nenter()"
    found = loaded(script, bare_environment(tmp_path))
    ours = {name for name in found if name.startswith("consumer")}
    used = {"click", "consumer"}
    name, _, asks = words.partition(" ")
    if asks:
        own = f"consumer.commands.{name}"
        ours -= {own, f"{own}.command", "consumer.commands.parsing"}
    if name in {"run", "check"}:
        used |= {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}
        ours -= {name for name in ours if name.startswith("consumer.settings")}
    assert ours == COMMAND_LINE
    assert "asyncio" not in found
    assert packages(found) - packages(loaded("", bare_environment(tmp_path))) <= used


def test_a_member_loads_what_it_uses(tmp_path: Path) -> None:
    """Page, key store on disk, clients of Kafka and the API; nothing of what other settings and commands need."""
    found = loaded(MEMBER, environment(tmp_path, absent()))
    assert {"aiohttp", "confluent_kafka"} <= packages(found)
    assert packages(found) & UNUSED == set()
    of_run = {*COMMAND_LINE, "consumer.commands.run"}
    assert {name for name in found if name.startswith(OF_OTHERS)} - of_run == set()


def private(pid: int) -> int:
    """What a process has allocated: KiB that are resident and of no file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_an_idle_member_takes_little_more_memory_than_its_libraries(tmp_path: Path) -> None:
    """It serves its page and waits for brokers, with its key store open; nothing is open, and nothing was."""
    env = environment(tmp_path, absent())
    command = [sys.executable, "-c", LIBRARIES]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, cwd=ROOT, stdin=pipe, stdout=pipe) as bare:
        assert bare.stdout is not None
        assert bare.stdout.readline() == b"loaded\n"
        libraries = private(bare.pid)
        bare.communicate()
    with Process(tmp_path, "run", env=env, fresh=True) as process:
        process.until(
            lambda: "The brokers do not answer" in process.get("/readyz")[1], "the wait for brokers"
        )
        member = private(process.pid)
        assert process.stop()[0] == 0
    print(f"private memory: {member} KiB, of it libraries {libraries} KiB: {member / libraries:.2f}")
    assert member < MAX_OF_LIBRARIES * libraries


def cpu(script: str, env: dict[str, str]) -> float:
    """Seconds of processor time that a program takes: the least of a few runs, of which the first may compile."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def test_the_version_comes_at_once(tmp_path: Path) -> None:
    """Some hundredths of a second: some four times as long as a program that does nothing."""
    env = bare_environment(tmp_path)
    asked = "import sys; sys.argv[1:] = ['--version']\nfrom consumer.__main__ import enter\nenter()"
    assert cpu(asked, env) < 8 * cpu("pass", env)
