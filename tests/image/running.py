"""Runs the image as a container runtime does that confines it: read-only, without rights, as process 1.

Done with util-linux alone: a runtime of its own would ask for control groups, which a machine of CI need not have. The
container has its own processes and mounts; the network is this machine's, so that it finds the brokers of the tests.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import psutil

from tests.end_to_end.processes import WITHIN, wait_for
from tests.image.building import Image

SECRETS = "/run/secrets"
_CONFINE = f"""
set -e
root=$1 state=$2 secrets=$3
shift 3
mount --bind "$root" "$root"
mkdir -p "$root{SECRETS}"
mount --bind "$state" "$root/var/lib/pinstream"
mount --bind "$secrets" "$root{SECRETS}"
mount -t tmpfs -o nosuid,nodev tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -o remount,bind,ro "$root"
exec chroot "$root" "$@"
"""
"""A script for root, in mounts and processes of its own; after it only `chroot` and the command run."""


class RunningContainer:
    """A container of the image: its volume, its secrets, and its output."""

    def __init__(self, image: Image, folder: Path) -> None:
        self.image = image
        self.state, self.secrets = folder / "state", folder / "secrets"
        self._err = folder / "stderr"
        for one in (self.state, self.secrets):
            one.mkdir(parents=True)
        # As an engine does with a new volume: it belongs to whom the folder in the image belongs to.
        owner = (image.files / "var/lib/pinstream").stat()
        subprocess.run(["chown", f"{owner.st_uid}:{owner.st_gid}", str(self.state)], check=True)
        self.state.chmod(0o750)

    def secret(self, name: str, text: str) -> str:
        """Write a secret to a file; return its path in the container."""
        (self.secrets / name).write_text(text, "utf-8")
        return f"{SECRETS}/{name}"

    def line(self, entrypoint: Sequence[str], *arguments: str) -> list[str]:
        """The command of this machine that runs this command in the container, as the image's user."""
        uid = self.image.config["User"]
        users = (self.image.files / "etc/passwd").read_text("utf-8").splitlines()
        [gid] = [user.split(":")[3] for user in users if user.split(":")[2] == uid]
        return [
            *("unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
            *("sh", "-c", _CONFINE, "container", str(self.image.files), str(self.state), str(self.secrets)),
            *("env", f"--chdir={self.image.config['WorkingDir']}"),
            *("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"),
            *("--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
            *(*entrypoint, *arguments),
        ]

    def run(
        self,
        *arguments: str,
        entrypoint: Sequence[str] = (),
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, with the image's variables and these, and with its entry point or another."""
        line = self.line(entrypoint or self.image.config["Entrypoint"], *arguments)
        return subprocess.run(
            line,
            env={**self.image.environment, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )

    def start(self, settings: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], psutil.Process]:
        """Start the image's own command; return the process that runs the container, and the id of process 1 in it."""
        line = self.line(self.image.config["Entrypoint"], *self.image.config["Cmd"])
        with self._err.open("wb") as err:
            runtime = subprocess.Popen(
                line, env={**self.image.environment, **settings}, stdin=subprocess.DEVNULL, stderr=err
            )

        def first() -> psutil.Process | None:
            children = psutil.Process(runtime.pid).children()
            return next(
                (one for one in children if one.cmdline()[1:2] == ["/opt/pinstream/bin/pinstream"]), None
            )

        found: psutil.Process = wait_for(lambda: runtime.poll() is not None or first(), "process 1")
        assert isinstance(found, psutil.Process), self.stderr
        return runtime, found

    @property
    def stderr(self) -> str:
        """What the process of `start` has logged so far."""
        return self._err.read_text("utf-8", "replace")
