"""The image that the Dockerfile makes, built on Debian's own Python, and run read-only as its user.

Building takes most of the time, and is done once for all tests here. Its size and how long it took are printed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

from consumer import __version__
from tests.end_to_end.api import Api, Loop
from tests.end_to_end.processes import ACCOUNT, TOKEN, wait_for
from tests.end_to_end.records import SCHEMA, generated, new_group, new_topic, write_generated
from tests.image.building import ROOT, Image, missing_programs
from tests.image.running import RunningContainer
from tests.support.aws import Glue, Sts
from tests.support.kafka.broker import free_ports
from tests.support.kafka.harness import Kafka
from tests.support.redis_server import RedisServer

# All in one step of CI, so that the image is built once; and with time for the build on a busy machine.
pytestmark = [pytest.mark.slow("builds the image"), pytest.mark.kafka, pytest.mark.timeout(1800)]

MAX_MEGABYTES = {"image": 260, "pinstream": 130}
"""The most that the whole image may take, and what pinstream and its dependencies may add to the base."""
GRACE = 10.0
"""PINSTREAM_SHUTDOWN_GRACE of the member that is stopped."""
MODULES = re.findall(
    r'^    "(consumer\.[\w.]+)",$', (ROOT / "hatch_build.py").read_text("utf-8"), re.MULTILINE
)
"""The compiled modules, from the build's own list."""
EXTRAS = ("redis.asyncio", "opentelemetry.exporter.otlp.proto.http.trace_exporter")
LIST_MODULES = """
import importlib, json, os, pathlib, re, sys
files = [importlib.import_module(name).__file__ for name in sys.argv[1:]]
status = pathlib.Path("/proc/self/status").read_text()
rights = dict(re.findall(r"^(Cap\\w+|NoNewPrivs):\\s+(\\w+)", status, re.MULTILINE))
read_only = bool(os.statvfs("/").f_flag & os.ST_RDONLY)
user = [os.getuid(), os.getgid(), os.getgroups()]
print(json.dumps([*user, os.getpid(), os.getcwd(), read_only, files, rights]))
"""
LOAD = """
import ctypes, json, os, pathlib, re, sys
import botocore.session
for library in sys.argv[1:]:
    ctypes.CDLL(library, os.RTLD_NOW | os.RTLD_LOCAL)
folder = pathlib.Path(botocore.__file__).parent
text = "".join((folder / f"{name}.py").read_text() for name in ("credentials", "tokens"))
makes = r"(?:create_nested_client|create_client|client_creator)\\(\\s*(?:self\\._session,\\s*)?['\\"]([a-z0-9-]+)"
services = sorted({"glue", *re.findall(makes, text)})
for service in services:
    botocore.session.Session().create_client(service, region_name="eu-west-1")
print(json.dumps([services, sorted(one.name for one in folder.glob("data/*/"))]))
"""
ASK_AWS = """
import asyncio, json, sys
from consumer.adapters.aws.glue import GlueSchemas
from consumer.adapters.aws.msk import tokens_for
from consumer.engine.messages import FetchSchema
from consumer.engine.model import SchemaRef
brokers = "b-1.orders.abc123.c2.kafka.eu-west-1.amazonaws.com:9098"
answer = asyncio.run(GlueSchemas("glue:eu-west-1").fetch(FetchSchema(SchemaRef("glue", sys.argv[1]))))
print(json.dumps([tokens_for({"bootstrap.servers": brokers}).used, answer.schema]))
"""


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Built once; skipped without the programs, but in CI it must be built."""
    missing = missing_programs()
    if missing and os.environ.get("CI", "").lower() != "true":
        pytest.skip(f"{', '.join(missing)} is not installed (Debian: buildah, mmdebstrap)")
    assert not missing
    with tempfile.TemporaryDirectory(prefix="pinstream-image-") as folder:
        yield Image(Path(folder))


@pytest.fixture
def container(image: Image, tmp_path: Path) -> RunningContainer:
    """A container of the image with an empty volume."""
    return RunningContainer(image, tmp_path)


@pytest.fixture
def api() -> Iterator[Api]:
    """A sandbox on this machine."""
    loop = Loop()
    try:
        with Api(loop) as one:
            yield one
    finally:
        loop.close()


def test_what_is_in_it(image: Image, record_property: Callable[[str, object], None]) -> None:
    """It has pinstream and Python: no compiler, no further pip, none of the build's configuration; and its size
    is bounded."""
    sizes = image.megabytes
    seconds = {name: round(value) for name, value in image.seconds.items()}
    record_property("figure", f"image: {sizes} MB, made within {seconds} s")
    assert {name: limit for name, limit in MAX_MEGABYTES.items() if sizes[name] > limit} == {}
    present = [
        name
        for name in ("usr/bin/gcc", "opt/pinstream/bin/pip", "etc/pip.conf", "src", "wheels", "opt/build")
        if (image.files / name).exists()
    ]
    assert present == []
    assert (image.config["User"], image.config["Entrypoint"], image.config["Cmd"]) == (
        "10001",
        ["pinstream"],
        ["run"],
    )
    state = (image.files / "var/lib/pinstream").stat()
    assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (10001, 10001, 0o750)


def test_the_page_s_table_of_sizes(image: Image) -> None:
    """The page's table says what was measured, package by package, names each that takes 3 MB, and adds up."""
    text = (ROOT / "docs/operate.md").read_text("utf-8").partition("## The image")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    said = {what: int(now) for what, _, now in rows}
    for column in (1, 2):
        total, *sizes = (int(row[column]) for row in reversed(rows))
        assert abs(total - sum(sizes)) <= 2  # each is rounded
    named = {what: re.findall(r"`([^`]+)`", what) for what in said}
    packages = image.packages()
    rest = {name: size for name, size in packages.items() if not any(name in one for one in named.values())}
    assert {name for name, size in rest.items() if size >= 3} == set()
    measured = {what: sum(packages[name] for name in names) for what, names in named.items() if names}
    measured["other packages"] = sum(rest.values())
    if 'VERSION_ID="12"' in (image.files / "etc/os-release").read_text("utf-8"):
        measured["base: Debian 12, Python 3.11"] = image.megabytes["base"]
        measured["all"] = image.megabytes["image"]
        assert set(measured) == set(said)
    assert {what: size for what, size in measured.items() if abs(size - said[what]) > 1 + size * 0.05} == {}


def test_the_sbom_is_what_is_installed(image: Image) -> None:
    """The image has a list of all that is in it: pinstream's packages as they are installed, Debian's as dpkg says."""
    document = json.loads((image.files / "opt/pinstream/sbom.cdx.json").read_text("utf-8"))
    parts = [document["metadata"]["component"], *document["components"]]
    [packages] = (image.files / "opt/pinstream/lib").glob("python3*/site-packages")
    installed = {(one.metadata["Name"], one.version) for one in distributions(path=[str(packages)])}
    assert len(installed) > 50
    found = {(one["name"], one["version"]) for one in parts if one["purl"].startswith("pkg:pypi/")}
    assert installed <= found  # the base may have some of its own
    listed = subprocess.run(
        [
            *("dpkg-query", f"--admindir={image.files / 'var/lib/dpkg'}", "--show"),
            "--showformat=${db:Status-Status} ${Package} ${Version} ${Architecture}\n",
        ],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    debian = {
        (one["name"], one["version"], one["purl"].rpartition("?arch=")[2].partition("&")[0])
        for one in parts
        if one["purl"].startswith("pkg:deb/")
    }
    lines = (line.split(" ") for line in listed.stdout.splitlines())
    assert debian == {tuple(rest) for status, *rest in lines if status == "installed"}


def test_how_it_is_confined(container: RunningContainer) -> None:
    """The image's user, no capability, a read-only root; the extras and the compiled modules work."""
    done = container.run("-c", LIST_MODULES, *MODULES, *EXTRAS, entrypoint=["python"])
    assert done.returncode == 0, done.stderr
    *found, files, rights = json.loads(done.stdout)
    assert found == [10001, 10001, [], 1, "/var/lib/pinstream", True]
    assert len(MODULES) >= 3
    assert all(file.endswith(".so") for file in files[: len(MODULES)])
    assert rights.pop("NoNewPrivs") == "1"
    assert {int(mask, 16) for mask in rights.values()} == {0}


def test_what_was_omitted_is_not_missed(image: Image, container: RunningContainer) -> None:
    """Each shared library loads without what only a debugger reads. botocore still makes a client of each service that
    it, or pinstream, names: so every kind of credentials works, as in the next test those of a pod."""
    libraries = [f"/{path.relative_to(image.files)}" for path in image.files.glob("opt/pinstream/**/*.so*")]
    assert len(libraries) > 20
    done = container.run("-c", LOAD, *libraries, entrypoint=["python"])
    assert done.returncode == 0, done.stderr
    tried, kept = json.loads(done.stdout)
    assert tried == kept == ["glue", "signin", "sso", "sso-oidc", "sts"]


def test_aws(container: RunningContainer) -> None:
    """As a pod on EKS: with a role's credentials it signs a token for MSK, and Glue gives it a schema."""
    glue, sts = Glue(), Sts()
    version = glue.add(SCHEMA)
    variables = {**glue.variables(), **sts.variables(container.secret("aws-token", "the-pod"))}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del variables[name]
    done = container.run("-c", ASK_AWS, version, entrypoint=["python"], settings=variables)
    sts.close()
    glue.close()
    assert done.returncode == 0, done.stderr
    used, found = json.loads(done.stdout)
    assert used == "region eu-west-1 (by the brokers' name), credentials by assume-role-with-web-identity"
    assert json.loads(found) == SCHEMA
    assert (glue.asked, "WebIdentityToken=the-pod" in sts.asked) == ([version], True)


def test_the_version(container: RunningContainer) -> None:
    """``docker run pinstream --version``."""
    done = container.run("--version")
    assert (done.returncode, __version__ in done.stdout) == (0, True), done.stderr


def test_the_demo(container: RunningContainer) -> None:
    """The whole system inside one container, from the first event to the last."""
    done = container.run("demo", "--events", "500", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    ledger = json.loads(done.stdout.splitlines()[-1])["ledger"]
    assert ledger["read"] >= 500
    assert ledger["delivered"] > 0
    assert ledger["open"] == 0


def settings_for(container: RunningContainer, kafka: Kafka, api: Api, topic: str) -> dict[str, str]:
    """What `check` and `run` need, with the token as a file."""
    quick = {"KAFKA_GROUP_PROTOCOL": "consumer"} if kafka.kind == "embedded" else {}
    return {
        **quick,
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "KAFKA_TOPICS": topic,
        "KAFKA_GROUP_ID": new_group(),
        "PINTEREST_AD_ACCOUNT_ID": ACCOUNT,
        "PINTEREST_ACCESS_TOKEN_FILE": container.secret("pinterest_access_token", TOKEN),
        "PINTEREST_API_URL": api.url,
        "PINSTREAM_HTTP_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}",
        "PINSTREAM_SHUTDOWN_GRACE": f"{GRACE:g}s",
        "PINSTREAM_LOG_FORMAT": "json",
    }


@pytest.mark.parametrize("store", ["disk", "redis"])
def test_check(container: RunningContainer, kafka: Kafka, api: Api, redis: RedisServer, store: str) -> None:
    """It is fit to run, with the key store on the volume and with a shared one."""
    variables = settings_for(container, kafka, api, new_topic(kafka))
    if store == "redis":
        variables["PINSTREAM_KEY_STORE"] = redis.url
    done = container.run("check", settings=variables)
    assert done.returncode == 0, done.stdout + done.stderr


def answers(address: str, path: str) -> int:
    """The status of a page; 0 while nothing listens."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_run_and_stop(container: RunningContainer, kafka: Kafka, api: Api) -> None:
    """It delivers, its health check succeeds, and SIGTERM to process 1 ends it within the grace, with code 0."""
    topic = new_topic(kafka)
    variables = settings_for(container, kafka, api, topic)
    _, events = generated(300, seed=3)
    write_generated(kafka, topic, events)
    address = variables["PINSTREAM_HTTP_ADDRESS"]
    runtime, first = container.start(variables)
    try:
        wait_for(lambda: runtime.poll() is not None or api.accepted().total() > 0, "the first events")
        wait_for(lambda: runtime.poll() is not None or answers(address, "/readyz") == 200, "a ready member")
        assert runtime.poll() is None, container.stderr[-3000:]
        assert answers(address, "/healthz") == 200
        test, *health_check = container.image.config["Healthcheck"]["Test"]
        assert test == "CMD"
        asked = container.run(entrypoint=health_check, settings=variables)
        assert asked.returncode == 0, asked.stderr
        begun = time.monotonic()
        first.terminate()
        assert runtime.wait(GRACE * 6) == 0
        assert time.monotonic() - begun < GRACE
    finally:
        runtime.kill()
        runtime.wait()
    # Behind it, a client may log what it met while the broker started.
    [last] = [one for one in map(json.loads, container.stderr.splitlines()) if one["event"] == "stopped"]
    assert last["delivered"] == api.accepted().total()
    assert set(api.accepted().values()) == {1}
    assert any(container.state.iterdir()), "the key store is on the volume"
