"""A mistake or a failure is one line on stderr that names what to change, with the right exit code (docs/run.md)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from consumer.app.ending import Ending
from consumer.commands import main
from tests.end_to_end.processes import (
    ROOT,
    bare_environment,
    command,
    last_error,
    run_environment,
    the_one_line,
)
from tests.end_to_end.records import new_group, new_topic
from tests.support.kafka.harness import WITHIN, Kafka

SETTINGS = {
    "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "KAFKA_TOPICS": "orders",
    "PINTEREST_AD_ACCOUNT_ID": "549755885175",
    "PINTEREST_ACCESS_TOKEN": "pina_5up3rs3cr3t",
    "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0",
}
SECRET = "5up3rs3cr3t"


class Case(NamedTuple):
    """`settings` on top of good ones (None removes one), the files to write first, and what the line must say."""

    settings: Mapping[str, str | None]
    says: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...] = ()


AVSC, TOML = "own.avsc", "m.toml"
OWN = b'{"type": "record", "name": "Own", "fields": [{"name": "a", "type": "int"}]}'
SCHEMAS, MAPPING = {"PINSTREAM_SCHEMAS_DIR": "{folder}"}, {"PINSTREAM_MAPPING_FILE": "{folder}/m.toml"}
WRONG_SETTINGS = {
    "brokers missing": Case({"KAFKA_BOOTSTRAP_SERVERS": None}, ("KAFKA_BOOTSTRAP_SERVERS", "required")),
    "schema folder missing": Case(
        {"PINSTREAM_SCHEMAS_DIR": "{folder}/nowhere"}, ("PINSTREAM_SCHEMAS_DIR", "nowhere")
    ),
    "schema broken": Case(SCHEMAS, (AVSC, "JSON"), ((AVSC, b'{"type": "record"'),)),
    "own schema without a mapping": Case(
        {**SCHEMAS, "PINSTREAM_SCHEMA": "Own"},
        ("PINSTREAM_MAPPING_FILE", "event_id, event_name, event_time, action_source have no source"),
        ((AVSC, OWN),),
    ),
    "mapping missing": Case({"PINSTREAM_MAPPING_FILE": "{folder}/nowhere.toml"}, ("PINSTREAM_MAPPING_FILE",)),
    "mapping not TOML": Case(MAPPING, (TOML, "TOML"), ((TOML, b"[fields"),)),
    "mapping path not in the schema": Case(
        MAPPING,
        (TOML, "customer.email", "customer.emails"),
        ((TOML, b'[fields]\n"user_data.em" = "customer.email"\n'),),
    ),
    "state folder is a file": Case(
        {"PINSTREAM_STATE_DIR": "{folder}/state"}, ("PINSTREAM_STATE_DIR",), (("state", b""),)
    ),
}
"""A case of each way to find it; all settings are in tests/settings."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run a command line in this process, for commands that end before they start: a process takes a second."""
    monkeypatch.setattr(
        Ending, "__init__", lambda *_, **__: pytest.fail("it starts: it needs its own process")
    )

    def call(*arguments: str, env: Mapping[str, str]) -> Ended:
        monkeypatch.setattr(os, "environ", dict(env))
        with pytest.raises(SystemExit) as ended:
            main(arguments, prog_name="pinstream")
        monkeypatch.undo()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return call


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_a_wrong_setting(name: str, tmp_path: Path, in_process: Callable[..., Ended]) -> None:
    """A setting that is wrong is exit code 2 and one line that names the variable or the file."""
    case = WRONG_SETTINGS[name]
    for file, content in case.files:
        (tmp_path / file).write_bytes(content)
    changed = {
        variable: None if value is None else value.format(folder=tmp_path)
        for variable, value in case.settings.items()
    }
    env = {**bare_environment(tmp_path / "home"), **SETTINGS, **changed}
    ended = in_process("run", env={variable: value for variable, value in env.items() if value is not None})
    line = the_one_line(ended.err)
    assert ended.code == 2, line
    assert ended.out == ""
    assert SECRET not in line
    for part in case.says:
        assert part.format(folder=tmp_path) in line


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"KAFKA_SEKURITY_PROTOCOL": "SSL"}, ("KAFKA_SEKURITY_PROTOCOL",)),
        ({"PINSTREAM_STATE_DIR": "/dev/null/state"}, ("PINSTREAM_STATE_DIR", "/dev/null")),
    ],
)
def test_a_setting_that_is_found_wrong_at_the_start(
    settings: dict[str, str], says: tuple[str, ...], tmp_path: Path
) -> None:
    """Only once the service starts, which takes over the signals of its process: exit code 2 and one line, too."""
    done = command("run", env={**bare_environment(tmp_path), **SETTINGS, **settings})
    line = last_error(done.stderr)
    assert (done.returncode, done.stdout) == (2, ""), line
    assert SECRET not in done.stderr
    assert all(part in line for part in says)


def test_a_missing_topic_and_an_address_that_is_taken(kafka: Kafka, tmp_path: Path) -> None:
    """The nearest topic is named, exit code 1, and none created; an address is a setting: 2."""
    topic, group = new_topic(kafka), new_group()
    missing = command("run", env=run_environment(tmp_path, kafka, topic[:-1], group, "http://127.0.0.1:9/v5"))
    line = last_error(missing.stderr)
    assert missing.returncode == 1
    assert topic[:-1] in line
    assert topic in line
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        env = run_environment(tmp_path, kafka, topic, group, "http://127.0.0.1:9/v5")
        done = command("run", env={**env, "PINSTREAM_HTTP_ADDRESS": address})
    line = last_error(done.stderr)
    assert done.returncode == 2
    assert "PINSTREAM_HTTP_ADDRESS" in line
    assert address in line


@pytest.mark.parametrize(
    ("url", "code", "says"),
    [
        ("disk:{folder}/file", 1, "file"),
        (
            "disk:{folder}/keys",
            1,
            "written by another version of pinstream: go on with that version, or move",
        ),
        ("sqlite:/tmp/keys", 2, "PINSTREAM_KEY_STORE"),
        ("lmdb:{folder}/keys", 2, "disk:/path"),
    ],
)
def test_a_wrong_key_store(tmp_path: Path, url: str, code: int, says: str) -> None:
    """One that cannot be opened is a failure (1), a kind of store that does not exist a wrong setting (2)."""
    (tmp_path / "file").write_bytes(b"not a folder")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "format").write_bytes(b"pinstream key store, format 2\n")
    env = {**bare_environment(tmp_path), **SETTINGS, "PINSTREAM_KEY_STORE": url.format(folder=tmp_path)}
    done = command("run", env=env)
    assert done.returncode == code
    assert says in last_error(done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "now"),
        ("demo", "--events", "0"),
        ("explain", "-", "--now", "yesterday"),
        ("produce", "--topic", "orders"),
        ("produce", "file", "--generate", "--topic", "orders"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], tmp_path: Path, in_process: Callable[..., Ended]) -> None:
    """Wrong usage is exit code 2, with the reason on stderr, nothing on stdout and no traceback."""
    ended = in_process(*arguments, env={**bare_environment(tmp_path), **SETTINGS})
    assert (ended.code, ended.out) == (2, "")
    assert "Error: " in ended.err or ended.err.startswith("pinstream: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("arguments", [("--debug", "run"), ("run", "--debug")])
def test_tracebacks_only_on_request(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """``--debug`` before or after the command prints a traceback, followed by the line of the error."""
    done = command(*arguments, env=bare_environment(tmp_path))
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "KAFKA_BOOTSTRAP_SERVERS" in done.stderr.strip().splitlines()[-1]


IMPATIENT = """
import consumer.app.start
consumer.app.start._FAIL_FAST = 1.0
from consumer.__main__ import enter
enter()
"""


def test_an_unreachable_broker(tmp_path: Path) -> None:
    """With --fail-fast exit code 1 and one line; until then two: where it reads, and the trouble, once."""
    line = [sys.executable, "-c", IMPATIENT, "run", "--fail-fast"]
    env = {**bare_environment(tmp_path), **SETTINGS, "PINSTREAM_LOG_FORMAT": "json"}
    done = subprocess.run(
        line, env=env, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    last = last_error(done.stderr)
    assert "127.0.0.1:1" in last
    assert "KAFKA_BOOTSTRAP_SERVERS" in last
    *logged, _ = done.stderr.strip().splitlines()
    starting, error = map(json.loads, logged)
    assert (starting["event"], starting["brokers"]) == ("starting", "127.0.0.1:1")
    assert starting["page"].startswith("http://127.0.0.1:")
    said = ("kafka_trouble", "_TRANSPORT", "no connection to 127.0.0.1:1: Connection refused")
    assert (error["event"], error["code"], error["text"]) == said
