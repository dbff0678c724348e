"""``pinstream init FOLDER``: a small project to begin with, which runs in the demo at once.

It is a copy of ``examples/shop``, which the wheel carries: settings, a schema, a mapping, sample events, and what has
to become of each. So what people start from is what the tests of the example run.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from consumer.commands.base import DebugCommand
from consumer.errors import PinstreamError, UsageError
from consumer.settings import packaged

_EXAMPLE = "examples/shop"
# The samples are of this day: at a later one they would be too old.
_NOW = "2026-03-01T12:00"


@click.command(cls=DebugCommand)
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Lay down a small project in FOLDER: settings, schema, mapping, sample events, and a test of the mapping.

    FOLDER must be new or empty. The last lines are the next three commands: they load the settings, test the mapping,
    and run the demo with the samples.
    """
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is not an empty folder; name a new one")
        # Without the files' rights: an installation may be read-only.
        shutil.copytree(packaged(_EXAMPLE), folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    except OSError as error:
        why = error.strerror or "not all files could be copied"
        raise PinstreamError(f"{folder} cannot be written ({why}); name another folder") from error
    files = sum(path.is_file() for path in folder.rglob("*"))
    click.echo(
        f"{folder} has {files} files now; its README.md says what each is. Next: load the settings, test the mapping, "
        "and deliver the samples to a sandbox of the API on this machine:\n"
    )
    for line in next_commands(folder, os.environ):
        click.echo(f"  {line}")


def next_commands(folder: Path, environ: Mapping[str, str]) -> tuple[str, str, str]:
    """Return what to enter next in a shell, in this order."""
    program = _program(environ)
    enter = "" if folder.resolve() == Path.cwd() else f"cd {shlex.quote(str(folder))} && "
    return (
        f"{enter}set -a && . ./pinstream.env && set +a",
        f"{program} explain samples.ndjson --now {_NOW} --expect expected.ndjson",
        f"{program} demo --file samples.ndjson",
    )


def _program(environ: Mapping[str, str]) -> str:
    """Return how to call pinstream again."""
    if "UV" in environ:  # uv puts it on the path only while it runs
        return "uv run pinstream" if environ.get("VIRTUAL_ENV") == sys.prefix else "uvx pinstream"
    if shutil.which("pinstream", path=environ.get("PATH")):
        return "pinstream"
    if Path(sys.prefix, "pipx_metadata.json").is_file():
        return "pipx run pinstream"
    return f"{shlex.quote(sys.executable)} -m consumer"
