"""Who replays with a state folder: one process at a time for each name, and whoever sends knows of the others.

Two replays that read the same records would both send them: neither finds a key before the other has stored it.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from consumer.app.building import make_state_folder
from consumer.errors import SettingsError, UsageError


@contextlib.contextmanager
def only_one(state_dir: Path, name: str) -> Iterator[None]:
    """Hold the name; the system lets go of it when the process ends, however it ends. Raises `UsageError`."""
    with _open(state_dir, f"name-{name}.lock") as file:
        if not _lock(file, fcntl.LOCK_EX):
            raise UsageError(
                f"--name {name}: a replay of this name is running; wait for it, or use another name"
            )
        yield


@contextlib.contextmanager
def beside_others(state_dir: Path) -> Iterator[bool]:
    """Count as one that sends; gives whether another one does."""
    with _open(state_dir, "sending.lock") as file:
        alone = _lock(file, fcntl.LOCK_EX)
        # Shared from here on: others may begin, and find that they are not alone.
        fcntl.flock(file, fcntl.LOCK_SH)
        yield not alone


def _open(state_dir: Path, name: str) -> IO[str]:
    folder = state_dir / "replays"
    make_state_folder(state_dir)
    make_state_folder(folder)
    try:
        return (folder / name).open("w")
    except OSError as error:
        raise SettingsError(
            f"PINSTREAM_STATE_DIR: {folder} cannot be written ({error.strerror}); name a folder this user may write to"
        ) from error


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
