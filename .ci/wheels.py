#!/usr/bin/env python3
"""Makes the source package and the wheels in dist/, and tries them: ``make wheels``; with one Python in CI.

Theory of operation. zig compiles all wheels, against the glibc that it brings; `constraints.txt` has its version and
hash. So a build does not depend on the machine, and one machine builds for several. auditwheel reads from the compiled
modules which glibc they need, and names the wheel so; it may be no later than `GLIBC`, which the Kafka client's need.
Each wheel is built from the source package, twice, without a cache, and both have to be the same bytes.

A wheel for this machine is then tried as by somebody who has neither a clone nor a compiler: installed into an empty
environment, and run by ``uvx`` from an index on this machine. Both run the demo, and its last line has to say that the
fast path is compiled.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64")
GLIBC = "2.28"
MAX_BYTES = 4_000_000
EVENTS = 3000
# Where the tools are: the environment that runs this (`make wheels`).
BIN = Path(sysconfig.get_path("scripts"))
# hatchling's own, so that the source package, the wheels and auditwheel's copies have one time.
EPOCH = "1580601600"


def run(*command: str | Path, folder: Path = ROOT, **changed: str) -> str:
    """Run a command with these changes to the environment. Return its output, or exit with its errors."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **changed}
    done = subprocess.run([*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command[0]} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def interpreter(version: str) -> str | None:
    """Return this Python's path, or None if it is not installed here: on the path, by uv, or by pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    for wanted in (version, *pyenv.glob(f"{version}.*/bin/python{version}")):
        command = (BIN / "uv", "python", "find", "--no-python-downloads", "--no-project", "--system", wanted)
        done = subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def build(source: Path, builder: Path, machine: str, folder: Path) -> Path:
    """Build the wheel of the source package, and have auditwheel tag it; return its path below `folder`.

    `builder`: a Python with the build backend. It is called without uv, which would take it for one of that machine.
    """
    compiler = f"{BIN / 'python'} -m ziglang cc -target {machine}-linux-gnu.{GLIBC}"
    target = {
        "CC": compiler,
        "LDSHARED": f"{compiler} -shared -s",
        "CFLAGS": "-g0 -Qunused-arguments",  # gcc's measures for making functions inline
        "ZIG_GLOBAL_CACHE_DIR": f"{folder / 'cache'}",
        "ZIG_LOCAL_CACHE_DIR": f"{folder / 'cache'}",
        "SOURCE_DATE_EPOCH": EPOCH,
        "PINSTREAM_NO_COMPILE": "0",
    }
    if machine != platform.machine():
        # What a Python on that machine would say of itself; its headers are the same.
        suffix = run(builder, "-c", "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))").strip()
        target["SETUPTOOLS_EXT_SUFFIX"] = suffix.replace(platform.machine(), machine)
        target["_PYTHON_HOST_PLATFORM"] = f"linux-{machine}"
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    unpacked = folder / source.name.removesuffix(".tar.gz")
    run(builder, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "built", folder=unpacked, **target)
    [built] = (folder / "built").glob("*.whl")
    run("auditwheel", "repair", "--plat", "auto", "--wheel-dir", folder, built, SOURCE_DATE_EPOCH=EPOCH)
    [wheel] = folder.glob("*.whl")
    if not fits(wheel.name):
        sys.exit(f"{wheel.name} needs a later glibc than {GLIBC}")
    return wheel


def fits(name: str) -> bool:
    """Return whether the wheel of this name can be installed where there is `GLIBC`, as auditwheel has read it."""
    needed = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)_", name)]
    return bool(needed) and min(needed) <= tuple(map(int, GLIBC.split(".")))


def build_twice(source: Path, python: str, machine: str, into: Path) -> Path:
    """Build the wheel into this folder. Exit if a second build differs, or if it is too large."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        run("uv", "venv", "--python", python, folder / "builder")
        builder = folder / "builder" / "bin" / "python"
        locked = ("--require-hashes", "--constraints", LOCK, "--group", "build")
        run("uv", "pip", "install", "--python", builder, *locked)
        for name in ("one", "other"):
            (folder / name).mkdir()
        wheel, again = (build(source, builder, machine, folder / name) for name in ("one", "other"))
        if (wheel.name, wheel.read_bytes()) != (again.name, again.read_bytes()):
            sys.exit(f"{wheel.name}: two builds of the same source differ")
        if wheel.stat().st_size > MAX_BYTES:
            sys.exit(f"{wheel.name} has {wheel.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
        return Path(shutil.copy(wheel, into))


@contextlib.contextmanager
def index(*packages: Path) -> Iterator[str]:
    """Serve these files as a package index on this machine; yield its address."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "pinstream")
        project.mkdir()
        for package in packages:
            shutil.copy(package, project)
        handler = functools.partial(Quiet, directory=folder)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            try:
                yield f"http://127.0.0.1:{server.server_port}"
            finally:
                server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    """Lists folders, as a package index does, and logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


def try_it(wheel: Path, python: str) -> float:
    """Install the wheel without a compiler, and run the demo; then the same by ``uvx``. Exit unless all records are
    delivered by compiled modules. Return the seconds that ``uvx pinstream demo`` took."""
    demo = ("demo", "--events", str(EVENTS), "--json")
    with tempfile.TemporaryDirectory() as folder, index(wheel) as url:
        bare = Path(folder, "bare")
        run("uv", "venv", "--python", python, bare)
        # No compiler, and next to nothing else: uv's scripts ask where they are.
        few = Path(folder, "few")
        few.mkdir()
        for program in ("dirname", "realpath"):
            (few / program).symlink_to(str(shutil.which(program)))
        nothing_else = {
            "PATH": f"{bare / 'bin'}{os.pathsep}{few}",
            "CC": "false",
            "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0",  # another demo may run beside it
        }
        locked = Path(folder, "requirements.txt")
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        locked.write_text(f"pinstream @ {wheel.as_uri()} --hash=sha256:{digest}\n", "utf-8")
        run(
            *(BIN / "uv", "pip", "install", "--python", bare / "bin" / "python", "--only-binary", ":all:"),
            *("--require-hashes", "--constraints", LOCK, "--requirement", locked),
            **nothing_else,
        )
        check(run(bare / "bin" / "pinstream", *demo, **nothing_else), wheel)
        describe(bare, wheel)
        begun = time.monotonic()
        # An index of its own has nothing but pinstream; all else comes from the usual one.
        output = run(
            *(BIN / "uv", "tool", "run", "--isolated", "--no-config", "--python", python, "--no-build"),
            *("--index", url, "--refresh-package", "pinstream", "pinstream", *demo),
            **nothing_else,
        )
        check(output, wheel)
        return time.monotonic() - begun


def describe(bare: Path, wheel: Path) -> None:
    """Write the SBOM of this environment beside the wheel in dist/. Exit if it is not what uv finds installed."""
    python = bare / "bin" / "python"
    text = run(python, ROOT / ".ci" / "sbom.py", bare)
    document = json.loads(text)
    parts = [document["metadata"]["component"], *document["components"]]
    described = {(part["name"], part["version"]) for part in parts if part["purl"].startswith("pkg:pypi/")}
    listed = json.loads(run("uv", "pip", "list", "--python", python, "--format", "json"))
    # uv writes names as an index compares them.
    installed = {(one["name"], one["version"]) for one in listed}
    if {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in described} != installed:
        sys.exit(f"{wheel.name}: the SBOM has {sorted(described)}, and installed are {sorted(installed)}")
    (ROOT / "dist" / f"{wheel.stem}.cdx.json").write_text(text, "utf-8")


def check(output: str, wheel: Path) -> None:
    """Exit unless the demo's last line says that all was delivered by compiled modules."""
    status = json.loads(output.splitlines()[-1])
    found = (
        status["process"]["fast_path"],
        status["ledger"]["open"],
        status["sandbox"]["accepted_events"] > EVENTS // 2,
    )
    if found != ("compiled", 0, True):
        sys.exit(f"{wheel.name}: the demo ended with {found}; wanted: compiled, nothing open, most accepted")


def main() -> None:
    """Make and try what is asked for; say one line for each wheel."""
    parser = argparse.ArgumentParser(prog="make wheels", description="Build and try wheels, into dist/.")
    parser.add_argument("--python", choices=PYTHONS, help="only of this Python")
    parser.add_argument("--machine", choices=MACHINES, help="only for this machine")
    asked = parser.parse_args()
    into = ROOT / "dist"
    into.mkdir(exist_ok=True)
    for old in into.glob("pinstream-*"):
        old.unlink()
    run("uv", "build", "--sdist", "--build-constraints", LOCK, "--require-hashes", "--out-dir", into)
    [source] = into.glob("*.tar.gz")
    print(f"{source.name}: {source.stat().st_size:,} bytes", flush=True)
    missing = []
    for version in PYTHONS if asked.python is None else (asked.python,):
        python = interpreter(version)
        if python is None:
            missing.append(version)
            continue
        for machine in MACHINES if asked.machine is None else (asked.machine,):
            wheel = build_twice(source, python, machine, into)
            line = f"{wheel.name}: {wheel.stat().st_size:,} bytes, the same when built twice"
            if machine == platform.machine():
                line += f"; tried without a compiler; uvx pinstream demo: {try_it(wheel, python):.0f} s"
            else:
                line += f"; not tried: this machine is {platform.machine()}"
            print(line, flush=True)
    if missing:
        sys.exit(f"not built: no Python {', '.join(missing)} here (uv python install {' '.join(missing)})")


if __name__ == "__main__":
    main()
