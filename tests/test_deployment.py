"""Dockerfile, docker-compose.yml, Makefile and pins, held against the code. tests/image builds and runs the image."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from jsonschema import Draft202012Validator

from consumer import __version__, commands
from consumer.settings import DEFAULT_NEEDS, Settings, load
from consumer.settings.values import SecretFile, parse_duration
from tests.support.memory import EXPANSION, MIB, STRANGERS, max_resident

ROOT = Path(__file__).parent.parent
NEEDS = {"run": DEFAULT_NEEDS, "check": DEFAULT_NEEDS, "produce": ("kafka",), "sandbox": ()}
"""The settings that each command of a service needs."""
OUR_PREFIXES = ("PINSTREAM_", "PINTEREST_", "KAFKA_", "SCHEMA_REGISTRY_")
MAKE_TARGETS = {
    "setup",
    "demo",
    "test",
    "test-all",
    "check",
    "simulate",
    "bench",
    "soak",
    "fuzz",
    "wheels",
    "lock",
    "site",
    "clean",
}

COMPOSE_SCHEMA = ROOT / "tests" / "deploy" / "target" / "compose-spec.json"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def final_stage() -> list[tuple[str, str]]:
    """The instructions of the image that is shipped."""
    found = instructions()
    return found[max(index for index, (word, _) in enumerate(found) if word == "FROM") :]


def image_environment() -> dict[str, str]:
    """The variables that the image sets."""
    pairs = [pair for word, rest in final_stage() if word == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def settings_of(service: dict[str, Any]) -> Settings:
    """The settings with which a service of ours starts; a `SettingsError` fails the test."""
    environ = {"HOME": "/var/lib/pinstream", **image_environment(), **service.get("environment", {})}
    for name, value in environ.items():
        secret = value.removeprefix("/run/secrets/")
        if secret != value:
            assert secret in service["secrets"]
            environ[name] = str(ROOT / interpolated(COMPOSE["secrets"][secret]["file"]))
    return load(
        {name: interpolated(value) for name, value in environ.items()}, needs=NEEDS[service["command"][0]]
    )


def interpolated(value: str) -> str:
    """A value as docker compose reads it if none of its variables is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)


class TestCompose:
    """Every service's command and variables exist, and settings that depend on each other agree."""

    def test_the_whole_system_is_there(self) -> None:
        """Kafka, topics, registry, sandbox, producer, pinstream, monitoring, and Redis as a profile."""
        watching = {"prometheus", "grafana"}
        assert SERVICES.keys() - watching == {
            *("kafka", "topics", "schema-registry", "sandbox", "producer", "pinstream", "redis")
        }
        assert {name for name, service in SERVICES.items() if "profiles" in service} == {"redis"}
        assert watching <= SERVICES.keys()
        assert OURS.keys() == {"sandbox", "producer", "pinstream"}

    def test_it_is_valid(self) -> None:
        """It fits the schema of the Compose Specification, which refuses unknown keys."""
        if not COMPOSE_SCHEMA.exists():
            if os.environ.get("CI", "").lower() == "true":
                pytest.fail("compose-go's schema is not installed: make tests/deploy/target/.ready")
            pytest.skip("compose-go's schema is not installed: make tests/deploy/target/.ready")
        validator = Draft202012Validator(json.loads(COMPOSE_SCHEMA.read_text("utf-8")))
        assert [error.message for error in validator.iter_errors(COMPOSE)] == []
        assert not validator.is_valid({"services": {"one": {"image": "one", "memlimit": "1g"}}})

    @pytest.mark.parametrize("name", SERVICES)
    def test_no_service_may_do_more_than_it_needs(self, name: str) -> None:
        """No capabilities, no way to get any, limits of processor and memory, and a fixed version. The root is
        read-only but for volumes and /tmp; Kafka and its registry write their configuration at the start."""
        service = SERVICES[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert 0 < service["cpus"] <= 2
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
        writes = name in ("kafka", "topics", "schema-registry")
        assert SERVICES[name].get("read_only", False) is not writes
        assert writes or SERVICES[name]["tmpfs"] == ["/tmp"]
        image, _, tag = SERVICES[name]["image"].rpartition(":")
        assert image
        assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag)

    def test_the_member_s_limit_is_above_what_it_may_take(self) -> None:
        """The limit of pinstream's memory is above the formula of docs/guarantees.md, however the one broker's records
        are compressed: a member that keeps its bounds is not killed."""
        service = SERVICES["pinstream"]
        ours = settings_of(service).pinstream
        bound = STRANGERS + max(
            max_resident(
                codec,
                1,
                open_bytes=ours.max_open_bytes,
                open_events=ours.max_open_events,
                concurrency=ours.concurrency,
                batch_bytes=4 * MIB,
            )
            for codec in EXPANSION
        )
        assert int(service["mem_limit"].removesuffix("m")) * MIB > bound

    @pytest.mark.parametrize("name", [name for name, service in SERVICES.items() if "healthcheck" in service])
    def test_health_is_cheap(self, name: str) -> None:
        """It is checked often during the start, then rarely, and never with a Java machine."""
        check = SERVICES[name]["healthcheck"]
        if check.get("disable"):
            return
        assert not any("kafka-" in word or "java" in word for word in check["test"])
        assert parse_duration(check["interval"]) >= 10
        assert parse_duration(check["start_interval"]) <= 2

    def test_secrets_are_files(self) -> None:
        """No token or password is in an environment; each secret is a file, and only the services that use it
        have it."""
        for service in SERVICES.values():
            for variable, value in service.get("environment", {}).items():
                if re.search(r"TOKEN|PASSWORD|SECRET", variable):
                    assert variable.endswith("_FILE")
                    assert value.startswith("/run/secrets/")
        for secret in COMPOSE["secrets"].values():
            assert (ROOT / interpolated(secret["file"])).read_text("utf-8").strip()
        settings = settings_of(SERVICES["pinstream"])
        token = settings.pinterest.access_token
        assert isinstance(token, SecretFile)
        assert token.path.read_text("utf-8").strip() == "sandbox"

    def test_the_shared_key_store_is_one_variable_away(self) -> None:
        """Redis never evicts keys and writes them to disk; with its profile pinstream waits for it."""
        environment = SERVICES["pinstream"]["environment"]
        assert environment["PINSTREAM_KEY_STORE"] == "${PINSTREAM_KEY_STORE:-}"
        store = settings_of(
            {**SERVICES["pinstream"], "environment": environment | {"PINSTREAM_KEY_STORE": "redis://redis"}}
        )
        assert store.pinstream.key_store.get_secret_value() == "redis://redis"
        [script] = SERVICES["redis"]["command"]
        assert "maxmemory-policy noeviction\n" in script
        assert "appendonly yes\n" in script
        assert "$$(cat /run/secrets/key_store_password)" in script
        assert SERVICES["redis"]["secrets"] == ["key_store_password"]
        assert SERVICES["pinstream"]["depends_on"]["redis"]["required"] is False

    @pytest.mark.parametrize("name", OURS)
    def test_commands_exist(self, name: str) -> None:
        """The command line of each service of ours parses, and every variable is known, valid, and enough for its
        command."""
        command, *arguments = OURS[name]["command"]
        with click.Context(commands.main) as context:
            commands.command(command).make_context(command, arguments, parent=context)
        known = (*OUR_PREFIXES, "OTEL_")
        assert all(variable.startswith(known) for variable in OURS[name].get("environment", {}))
        settings_of(OURS[name])

    def test_our_image_has_our_version(self) -> None:
        """The tag is the version of the package; the broker and the container that creates topics have the same
        version."""
        tags = {service["image"] for service in OURS.values()}
        assert tags == {f"pinstream:{__version__}"}
        assert SERVICES["kafka"]["image"] == SERVICES["topics"]["image"]

    def test_everyone_waits_for_what_it_needs(self) -> None:
        """A service that others wait for has a health check or ends, and exists."""
        for service in SERVICES.values():
            for other, waiting in service.get("depends_on", {}).items():
                if waiting["condition"] == "service_healthy":
                    assert SERVICES[other]["healthcheck"]["test"]
                else:
                    assert waiting["condition"] == "service_completed_successfully"
                    assert SERVICES[other]["restart"] == "no"
        assert SERVICES["pinstream"]["depends_on"].keys() == {
            *("topics", "schema-registry", "sandbox", "redis")
        }

    def test_topics_are_made_before_they_are_used(self) -> None:
        """The input topic and its dead-letter topic, by the names that pinstream and the producer use. Brokers,
        registry and API have the names of the services that listen there."""
        settings = settings_of(SERVICES["pinstream"])
        made = re.findall(r"for topic in ([^;]+);", SERVICES["topics"]["command"][0])[0].split()
        wanted = [
            *settings.kafka.topics,
            *map(settings.pinstream.dead_letter_topic_of, settings.kafka.topics),
        ]
        assert sorted(made) == sorted(wanted)
        command = SERVICES["producer"]["command"]
        assert (command[command.index("--topic") + 1],) == settings.kafka.topics
        settings = settings_of(SERVICES["pinstream"])
        listeners = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
        assert f"://{settings.kafka.bootstrap_servers}" in listeners
        assert settings.registry.url == "http://schema-registry:8081"
        assert "8081" in SERVICES["schema-registry"]["environment"]["SCHEMA_REGISTRY_LISTENERS"]
        sandbox = SERVICES["sandbox"]["command"]
        assert settings.pinterest.api_url == f"http://sandbox:{sandbox[sandbox.index('--port') + 1]}/v5"

    def test_what_pinstream_s_settings_need(self) -> None:
        """The state folder is on a volume. No port of a development system is open to the network, and the page's is
        the one where it listens. pinstream ends by itself before Docker kills it."""
        state = settings_of(SERVICES["pinstream"]).pinstream.state_dir
        assert SERVICES["pinstream"]["volumes"] == [f"pinstream-state:{state}"]
        assert "pinstream-state" in COMPOSE["volumes"]
        for service in SERVICES.values():
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        address = settings_of(SERVICES["pinstream"]).pinstream.http_address
        assert address is not None
        assert SERVICES["pinstream"]["ports"] == [f"127.0.0.1:{address.port}:{address.port}"]
        grace = settings_of(SERVICES["pinstream"]).pinstream.shutdown_grace
        assert parse_duration(SERVICES["pinstream"]["stop_grace_period"]) > grace


class TestDockerfile:
    """The image runs pinstream with pinned versions, as process 1, without privileges."""

    def test_how_it_runs(self) -> None:
        """The user is a number (for Kubernetes' runAsNonRoot), and not 0; build and image have the same Python;
        commands are in exec form, so that SIGTERM reaches pinstream and not a shell; the state folder is the volume."""
        [user] = [rest for word, rest in final_stage() if word == "USER"]
        assert int(user) > 0
        images = {rest.split(" AS ")[0] for word, rest in instructions() if word == "FROM"}
        assert images == {"${BASE}"}
        assert instructions()[0] == ("ARG", "BASE=python:3.11-slim")
        found = dict(final_stage())
        assert (found["ENTRYPOINT"], found["CMD"]) == ('["pinstream"]', '["run"]')
        assert found["HEALTHCHECK"].partition(" CMD ")[2].startswith('["python", "-c", ')
        found = dict(final_stage())
        assert image_environment()["PINSTREAM_STATE_DIR"] == found["VOLUME"] == "/var/lib/pinstream"

    def test_its_labels(self) -> None:
        """The image says what it is as the package does."""
        labels = dict(pair.split("=", 1) for pair in shlex.split(dict(final_stage())["LABEL"]))
        project = PYPROJECT["project"]
        assert labels == {
            "org.opencontainers.image.title": project["name"],
            "org.opencontainers.image.description": project["description"],
            "org.opencontainers.image.licenses": project["license"],
        }

    @pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY", "all_proxy"])
    def test_the_health_check_asks_past_a_proxy(self, proxy: str) -> None:
        """A proxy for the way out does not know this container and cannot reach it."""
        [_, _, code] = yaml.safe_load(dict(final_stage())["HEALTHCHECK"].partition(" CMD ")[2])
        asked = []

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        with HTTPServer(("127.0.0.1", 0), Answer) as server:
            serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            serving.start()
            environment = {
                proxy: "http://127.0.0.1:9",
                "PINSTREAM_HTTP_ADDRESS": f"0.0.0.0:{server.server_port}",
            }
            done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
            server.shutdown()
            serving.join()
        assert (done.returncode, asked) == (0, ["/healthz"])

    def test_everything_is_installed_by_its_hash(self) -> None:
        """No version depends on the day of the build, and no file on who serves it. A shared key store and traces need
        settings, not another image."""
        runs = [rest for word, rest in instructions() if word == "RUN"]
        installs = [part for rest in runs for part in rest.split("&&") if "pip install" in part]
        assert installs
        assert all("--require-hashes" in part for part in installs)
        assert all(
            "--constraint constraints.txt" in part or "/opt/build/pip.txt" in part for part in installs
        )
        extras = ",".join(PYPROJECT["project"]["optional-dependencies"])
        assert any(f"[{extras}]" in rest for word, rest in instructions() if word == "RUN")

    def test_what_is_copied_exists_and_is_not_ignored(self) -> None:
        """What is copied or mounted from the source tree is there, through .dockerignore's list."""
        kept = {
            line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] == "!"
        }
        copied = [
            source
            for word, rest in instructions()
            if word == "COPY" and "--from" not in rest
            for source in rest.split()[:-1]
        ]
        mounted = {
            folder for _, rest in instructions() for folder in re.findall(r"type=bind,source=([^,\s]+)", rest)
        }
        assert mounted == {".ci"}
        assert {*copied, ".ci/sbom.py"} == kept
        assert all((ROOT / source).exists() for source in copied)


class TestPins:
    """Every dependency has a reason and a version."""

    def direct(self) -> list[str]:
        """The names in pyproject.toml's requirements, without versions."""
        groups: list[Any] = [entry for group in PYPROJECT["dependency-groups"].values() for entry in group]
        requirements = PYPROJECT["project"]["dependencies"] + [
            entry for entry in groups if isinstance(entry, str)
        ]
        return [re.split(r"[<>=~! ]", requirement)[0] for requirement in requirements]

    def test_each_dependency_has_its_reason(self) -> None:
        """docs/dependencies.md lists exactly the direct dependencies, each with a reason."""
        text = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
        listed = re.findall(r"^- `([^`]+)`: \S", text, re.MULTILINE)
        assert sorted(listed) == sorted(self.direct())

    def test_each_dependency_is_locked(self) -> None:
        """constraints.txt has one exact version of each, of pip and of the build system's, with hashes. It has no
        address, path or range, and what it has for some platforms only is marked."""
        entries = self.locked()
        direct = {_canonical(name.partition("[")[0]) for name in self.direct()}
        assert direct | {"pip"} <= entries.keys()
        requirements = PYPROJECT["build-system"]["requires"]
        assert len(requirements) == 3
        assert {f"{name}=={entries[name][0]}" for name in entries} >= {*requirements}
        assert all(hashes for _, hashes in entries.values())
        assert "://" not in self.constraints()

    def test_the_lock_has_what_is_installed_here(self) -> None:
        """`make setup` installed from this lock: what is installed has its versions."""
        entries = self.locked()
        found = {
            _canonical(one.metadata["Name"]): one.version
            for one in distributions(path=[sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
        }
        del found["pinstream"]
        # The tests of the chart add what checks its schemas (tests/deploy/tools.sh).
        known = {name: version for name, version in found.items() if name in entries}
        assert len(known) > 80
        assert known == {name: entries[name][0] for name in known}

    def test_setup_and_ci_install_by_hashes(self) -> None:
        """What `make` and the tools of the chart install has its hash in the lock, but for the package itself, and for
        the systems that the benchmark compares with."""
        scripts = ("Makefile", "tests/deploy/tools.sh")
        text = "\n".join((ROOT / script).read_text("utf-8") for script in scripts)
        calls = re.findall(
            r"(?:\$\((?:RELEASE_)?PIP\)|-m pip) (.*(?:install|download) .*)$", text, re.MULTILINE
        )
        others = [call for call in calls if not re.search(r"\$\(LOCKED\)|\$\{locked\[@\]\}", call)]
        assert len(calls) - len(others) == 5
        assert [call.partition("install ")[2] for call in others] == [
            "--requirement $(VENV)/pip.txt",  # lines of the lock, with their hashes
            "--no-deps --no-build-isolation --editable .",
            "--requirement $(RELEASE)/pip.txt",
            "--requirement $<",
        ]
        assert "LOCKED := --require-hashes --constraint constraints.txt\n" in text
        assert "locked=(--quiet --no-deps --require-hashes --constraint ../../constraints.txt)\n" in text

    def locked(self) -> dict[str, tuple[str, list[str]]]:
        """The version and the hashes of each entry of constraints.txt; nothing else may stand there."""
        entries: dict[str, tuple[str, list[str]]] = {}
        for entry in re.split(r"(?<!\\)\n", self.constraints().strip()):
            first, *hashes = (line.strip() for line in entry.split("\\\n"))
            named = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._+!]+)(?: ; [^\\]+)?", first)
            assert named, first
            name = _canonical(named[1])
            assert name not in entries
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), name
            entries[name] = (named[2], hashes)
        return entries

    def constraints(self) -> str:
        """The text of constraints.txt."""
        return (ROOT / "constraints.txt").read_text("utf-8")


def _canonical(name: str) -> str:
    """The name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class TestMake:
    """The targets of the Makefile are those of the contract."""

    def test_targets(self) -> None:
        """The contract's targets and `help`, which lists them."""
        text = (ROOT / "Makefile").read_text("utf-8")
        targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
        assert targets - {"help"} == MAKE_TARGETS
        phony = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)[0].split()
        assert set(phony) == targets | {"FORCE"}  # make's own idiom for what is asked each time

    def test_ci_runs_what_the_readme_says(self) -> None:
        """.ci/run is what a person types, make check and make test, and a part of what only a release needs."""
        script = ROOT / ".ci" / "run"
        text = script.read_text("utf-8")
        assert script.stat().st_mode & 0o111
        assert "set -euo pipefail" in text
        steps = dict(re.findall(r"^ *step (\w+) (.*) \|\| failed=1$", text.replace("\\\n", ""), re.MULTILINE))
        assert list(steps) == ["commits", "check", "test", "newest", "wheel", "slow"]
        assert (steps["check"], steps["test"]) == ("make check", "make test")
        assert "-m 'not kafka and not simulation'" in steps["newest"]
        assert all((ROOT / folder).is_dir() for folder in re.findall(r"tests/[\w/]+", steps["newest"]))
        assert steps["slow"] == 'make test-all ARGS="--slow-part $part"'
        assert text.rstrip().endswith('exit "$failed"')

    def test_a_step_without_a_test_fails(self) -> None:
        """pytest says so with its exit code, also where another process does the work."""
        some = ("-m", "kafka", "tests/engine/records/commits/test_lag.py")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n1", *some],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=240,
            env={**os.environ, "PYTEST_ADDOPTS": ""},
        )
        assert done.returncode == 5, done.stdout + done.stderr
