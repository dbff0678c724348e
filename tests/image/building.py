"""Builds the image with what Debian has: mmdebstrap makes a base with Debian's own python3, buildah builds on it.

No image registry is asked, and no container engine runs: the base is the Dockerfile's ``ARG BASE``. Packages come from
where this machine has its own from: its apt sources and its pip configuration are handed to the build, and are not in
what is built. Both programs need root.
"""

from __future__ import annotations

import ast
import functools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAMS = ("mmdebstrap", "buildah", "unshare", "setpriv")
_WITHIN = 1200.0
"""Seconds that one command may take on a busy machine; usually it takes less than a minute."""
_PIP_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "cert", "timeout")
"""How this machine reaches its package index."""
_SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")
_HOOKS = "/usr/share/mmdebstrap/hooks"
_NOT_NEEDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
"""Omitted of the base, as in the registry's slim images."""


def missing_programs() -> list[str]:
    """The programs that are not installed here."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


def _run(*command: str) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN, check=False)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return done.stdout


class Image:
    """The image, built below `folder`: its configuration and its files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.seconds: dict[str, float] = {}
        """How many seconds each step took."""
        begun = time.monotonic()
        self._make_base()
        self.seconds["base"] = time.monotonic() - begun
        begun = time.monotonic()
        self._build()
        self.seconds["build"] = time.monotonic() - begun
        described: dict[str, Any] = json.loads(self._buildah("inspect", "--type", "image", "pinstream"))
        self.config: dict[str, Any] = described["Docker"]["config"]
        """User, Env, Entrypoint, Cmd, WorkingDir, Volumes, Healthcheck."""
        container = self._buildah("from", "pinstream").strip()
        self.files = Path(self._buildah("mount", container).strip())
        """Its root file system."""

    def _buildah(self, *arguments: str) -> str:
        # vfs: plain folders, which work on every file system, inside a container too.
        store = ("--root", f"{self._folder}/store", "--runroot", f"{self._folder}/run")
        return _run("buildah", *store, "--storage-driver", "vfs", *arguments)

    def _make_base(self) -> None:
        """A small Debian, of the release that runs here, with its python3."""
        release = dict(
            line.split("=", 1)
            for line in Path("/etc/os-release").read_text("utf-8").splitlines()
            if "=" in line
        )
        apt = self._folder / "apt.conf"
        apt.write_text(_run("apt-config", "dump", "Acquire"), "utf-8")
        _run(
            "mmdebstrap",
            *("--quiet", "--variant=minbase", "--include=python3,ca-certificates", f"--aptopt={apt}"),
            # /bin is /usr/bin from the start, as in the registry's images; else Perl comes, to move it.
            f"--hook-dir={_HOOKS}/maybe-merged-usr",
            # No fsync for each file, as in the registry's images: a base that a crash spoiled is built again.
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in _NOT_NEEDED),
            *(release["VERSION_CODENAME"], f"{self._folder}/base.tar"),
            *(path for path in _SOURCES if Path(path).exists()),
        )
        empty = self._buildah("from", "scratch").strip()
        self._buildah("add", "--quiet", empty, f"{self._folder}/base.tar", "/")
        self._buildah("commit", "--quiet", "--rm", empty, "localhost/base")

    def _build(self) -> None:
        """Build as `docker build` does: in Docker's format, because the other one has no health check."""
        pip = self._pip_configuration()
        secret = self._folder / "pip.conf"
        secret.write_text(
            "\n".join(["[global]", *(f"{key} = {value}" for key, value in pip.items()), ""]), "utf-8"
        )
        certificates = Path(pip.get("cert", "/etc/ssl/certs/ca-certificates.crt")).parent
        self._buildah(
            *("build", "--format", "docker", "--isolation", "chroot", "--build-arg", "BASE=localhost/base"),
            *("--secret", f"id=pip,src={secret}", "--volume", f"{certificates}:{certificates}:ro"),
            *("--tag", "pinstream", str(ROOT)),
        )

    def _pip_configuration(self) -> dict[str, str]:
        """pip's configuration on this machine: its files, then the environment, which overrides them."""
        found = {}
        for line in _run(sys.executable, "-m", "pip", "config", "list").splitlines():
            name, _, value = line.partition("=")
            key = name.rpartition(".")[2].removeprefix("default-")
            if key in _PIP_KEYS:
                found[key] = " ".join(str(ast.literal_eval(value)).split())
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The variables that it sets."""
        return dict(pair.split("=", 1) for pair in self.config["Env"])

    @functools.cached_property
    def megabytes(self) -> dict[str, int]:
        """The size of the whole image, of its base, and of what pinstream adds, in MB."""
        whole, ours = _size(self.files.rglob("*")), _size((self.files / "opt/pinstream").rglob("*"))
        return {"image": round(whole), "base": round(whole - ours), "pinstream": round(ours)}

    def packages(self) -> dict[str, float]:
        """The size of each Python package, by its name, in MB."""
        [folder] = self.files.glob("opt/pinstream/lib/python3*/site-packages")
        return {
            one.metadata["Name"]: _size(Path(file.locate()) for file in one.files or ())
            for one in distributions(path=[str(folder)])
        }


def _size(files: Iterable[Path]) -> float:
    """In MB. Not the space on disk, and a file counts as often as it has names."""
    return sum(path.lstat().st_size for path in files if path.is_file() and not path.is_symlink()) / 1e6
