"""What a command loads: what it does not need is not imported, so that it begins soon and takes little memory."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.processes import ROOT, bare_environment
from tests.end_to_end.trouble.test_start import absent, environment

COMMAND_LINE = {
    "consumer",
    "consumer.__main__",
    "consumer.commands",
    "consumer.commands.base",
    "consumer.errors",
}
UNUSED = {
    "authlib", "boto3", "botocore", "fastavro", "httpx", "opentelemetry", "phonenumbers", "prometheus_client",
    "redis", "requests",
}  # fmt: skip
"""Packages that a member with its store on disk, schemas from a folder, and no export and no scrape does not use."""
OF_OTHERS = ("consumer.demo", "consumer.workers", "consumer.commands", "consumer.adapters.key_store.shared")
MEMBER = """
import asyncio, os
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


@pytest.mark.parametrize("words", ["--version", "--help", "run --help"])
def test_help_loads_only_the_command_line(words: str, tmp_path: Path) -> None:
    """click and the texts; not even asyncio. That of a command has the settings, too, and what they are made with."""
    script = f"sys.argv[1:] = {words.split()!r}\nfrom consumer.__main__ import enter\nenter()"
    found = loaded(script, bare_environment(tmp_path))
    ours = {name for name in found if name.startswith("consumer")}
    used = {"click", "consumer"}
    if words == "run --help":
        used |= {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}
        ours -= {"consumer.commands.run", *(name for name in ours if name.startswith("consumer.settings"))}
    assert ours == COMMAND_LINE
    assert "asyncio" not in found
    assert packages(found) - packages(loaded("", bare_environment(tmp_path))) <= used


def test_a_member_loads_what_it_uses(tmp_path: Path) -> None:
    """Page, key store on disk, clients of Kafka and the API; nothing of what other settings and commands need."""
    found = loaded(MEMBER, environment(tmp_path, absent()))
    assert {"aiohttp", "confluent_kafka"} <= packages(found)
    assert packages(found) & UNUSED == set()
    assert [name for name in found if name.startswith(OF_OTHERS)] == []


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
