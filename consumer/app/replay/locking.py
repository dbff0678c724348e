"""One process at a time for each named replay of a state folder: two would both send what both are reading."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from consumer.errors import SettingsError, UsageError


@contextlib.contextmanager
def only_one(state_dir: Path, name: str) -> Iterator[None]:
    """Hold the name; the system lets go of it when the process ends, however it ends. Raises `UsageError`."""
    folder = state_dir / "replays"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / f"{name}.lock").open("w")
    except OSError as error:
        raise SettingsError(
            f"PINSTREAM_STATE_DIR: {folder} cannot be written ({error.strerror}); name a folder this user may write to"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"--name {name}: a replay of this name is running; wait for it, or use another name"
            ) from None
        yield
