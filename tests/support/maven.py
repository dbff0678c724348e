"""What Maven fetches for tests: jars of servers, once for each state of a ``pom.xml``; later runs need no network."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.support.keeper import Unavailable, locked

_SECONDS = 300


def fetched(pom: Path, goal: str, folder: Path) -> Path:
    """Return `folder`, which `goal` of this pom fills if it is empty. Raises `Unavailable`."""
    if shutil.which("java") is None:
        raise Unavailable("no `java` on the PATH")
    # Written last, and named after the pom: what an older version brought is not taken for today's.
    stamp = folder.parent / f"resolved-{hashlib.sha256(pom.read_bytes()).hexdigest()[:12]}"
    if stamp.is_file():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise Unavailable("no `mvn` on the PATH to fetch its jars with")
    folder.parent.mkdir(exist_ok=True)
    # One at a time for all of this user's runs: they have one local repository, which Maven does not lock.
    with locked(Path(tempfile.gettempdir()) / f"pinstream-maven-{os.getuid()}.lock"):
        if not stamp.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            _run([maven, "-q", "-B", "-f", str(pom), goal])
            stamp.touch()
    return folder


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"Maven did not fetch its jars within {_SECONDS} s") from error
    if done.returncode != 0:
        raise Unavailable(f"Maven cannot fetch its jars: {(done.stdout + done.stderr).strip()[-500:]}")
