"""Limits of the process that are too low are one line that says which one to raise."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from consumer.commands.base import Group
from consumer.errors import limit_met
from tests.end_to_end.processes import THIS, bare_environment

FILES = (
    "too many files are open: raise the limit of open files (ulimit -n, or LimitNOFILE= of a systemd unit)"
)
ROOM = "there is too little memory or address space, or no room for another thread: raise the limits"


def limited(limit: str, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a program under a limit of the shell's `ulimit`."""
    line = ["sh", "-c", f'ulimit {limit} && exec "$@"', "sh", *arguments]
    return subprocess.run(
        line, env=env, cwd=THIS.root, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Settings of a service whose broker is not there."""
    return {
        **bare_environment(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9", "KAFKA_TOPICS": "orders",
        "PINTEREST_AD_ACCOUNT_ID": "7", "PINTEREST_ACCESS_TOKEN": "pina_x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("-n 24", "24 files may be open at once, and pinstream needs 72 or more: raise the limit of open"),
        ("-v 700000", "the address space is limited to 683 MiB, and pinstream needs 1,024 MiB or more"),
    ],
)
@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["alone", "workers"])
def test_a_limit_that_is_too_low_ends_the_start(
    limit: str, said: str, workers: tuple[str, ...], env: dict[str, str]
) -> None:
    """The service does not start, nor any worker, and its only error line says what to raise."""
    done = limited(limit, *THIS.line(("run", *workers), env), env=env)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith(f"pinstream: {said}")


def test_a_limit_of_files_that_may_be_raised_is_raised(env: dict[str, str]) -> None:
    """Where only the soft limit of open files is low, the process raises it for itself."""
    program = (
        "import os, resource; from consumer.app.building import require_limits; from consumer.settings import load; "
        "require_limits(load(os.environ)); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = limited("-Sn 30", sys.executable, "-c", program, env=env)
    # 64, the calls at once, and the connections of the page.
    assert done.stdout.split() == [str(64 + 8 + 200)], done.stderr


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EMFILE, "Too many open files"), FILES),
        (OSError(errno.ENFILE, "Too many open files in system"), FILES),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ROOM),
        (MemoryError(), ROOM),
        (RuntimeError("can't start new thread"), ROOM),
        (ImportError("_x.so: failed to map segment from shared object"), ROOM),
        (OSError(errno.ENOSPC, "No space left on device"), "a disk is full"),
        (OSError(errno.ENOENT, "No such file"), ""),
        (RuntimeError("another"), ""),
    ],
)
def test_a_limit_that_is_met_later_is_no_bug(error: Exception, said: str) -> None:
    """A limit that any call meets is named; other errors are bugs, whose text is not shown."""
    assert limit_met(error).startswith(said)
    assert bool(limit_met(error)) == bool(said)

    @click.command()
    def fail() -> None:
        raise error

    result = CliRunner().invoke(Group(commands={"fail": fail}), ["fail"])
    assert result.exit_code == 1
    assert result.output.startswith(f"pinstream: {said or 'unexpected '}")
