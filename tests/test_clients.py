"""The oldest and the newest Kafka client that `pyproject.toml` allows; all else runs with that of `constraints.txt`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from consumer.adapters.kafka.native import plain
from tests.support.kafka.harness import Kafka

ROOT = Path(__file__).parents[1]
CLIENT = "confluent-kafka[schemaregistry]>="
SUITE = (
    "tests/adapters/kafka/test_messages.py",
    "tests/adapters/kafka/test_client_errors.py",
    "tests/adapters/kafka/test_dead_letters.py",
    "tests/adapters/kafka/test_topic_ids.py",
    "tests/adapters/kafka/member/test_member.py",
    "tests/adapters/test_registry_contract.py",
    "tests/adapters/test_bounded_answers.py",
    "tests/end_to_end/test_run.py::test_every_record_ends_as_it_must",
)
"""What asks most of the client: reading, committing, writing, the admin's questions, and the registry's client."""


def pip(*arguments: str) -> str:
    """Run pip and return what it writes. Where it reaches no index the test is skipped; in CI it fails."""
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "20"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *arguments], capture_output=True, text=True
    )
    if done.returncode == 0:
        return done.stdout
    if os.environ.get("CI") == "true":
        pytest.fail(f"pip cannot install the client: {done.stderr}", pytrace=False)
    pytest.skip(
        f"this version of the client is not installed, and pip cannot install it: {done.stderr[-300:]}"
    )


@pytest.mark.slow("another client's tests, installed for it")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["oldest", "newest"])
def test_it_runs_with_each_client_that_is_allowed(which: str, kafka: Kafka, tmp_path: Path) -> None:
    """With the oldest client and with the newest one the adapter's tests pass, on the run's broker and on the embedded
    one; so do those of the registry's client, and a whole run."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    [allowed] = [one for one in dependencies if one.startswith(CLIENT)]
    wanted = allowed if which == "newest" else allowed.replace(">=", "==")
    found = json.loads(pip("--dry-run", "--ignore-installed", "--no-deps", "--report", "-", wanted))
    if found["install"][0]["metadata"]["version"] == version("confluent-kafka"):
        return  # all other tests ran with it
    pip("--target", str(tmp_path / "client"), wanted)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "client")}
    if kafka.kind != "embedded":  # the nested run then starts no other broker
        environment["KAFKA_BOOTSTRAP_SERVERS"] = kafka.bootstrap_servers
    run = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-k",
        "not test_registry_contract or fake",
    ]
    done = subprocess.run(
        [*run, f"--basetemp={tmp_path / 'nested'}", *SUITE],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


def test_messages_that_are_laid_out_otherwise_are_read_in_the_plain_way() -> None:
    """If the client's messages have another layout in memory, or other fields, they are read by their methods."""
    for change in (
        "class Message(confluent_kafka.Message): __slots__ = ('more',)",
        "def Message(*fields): raise TypeError\nMessage.__basicsize__ = confluent_kafka.Message.__basicsize__",
    ):
        code = (
            f"import confluent_kafka\n{change}\nconfluent_kafka.Message = Message\n"
            "from consumer.adapters.kafka.native import gather\nprint(gather.__module__)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.stdout.strip() == plain.__name__, done.stderr
