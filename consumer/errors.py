"""The error tree: every error that a user can see, and the exit code that it ends the process with.

::

    PinstreamError                     1   something failed
    ├── UsageError                     2   the command line is invalid
    │   └── SettingsError              2   a setting, or a file it names, is invalid; names the variable
    │       ├── MappingError           2   the mapping file contradicts itself or the schema
    │       └── SchemaError            2   a schema file is not Avro, or is missing
    ├── InputError                     1   a file cannot be read to its end
    ├── Incomplete                     1   a bounded run ended before all its records were settled
    ├── KafkaError                     1   brokers unreachable, refused, or a topic is missing
    ├── RegistryError                  1   the schema registry cannot be used at all
    ├── KeyStoreError                  1   the key store cannot be opened, read or written
    ├── WorkersFailed                  1   a worker could not be kept running
    ├── DestinationRefused             3   the destination refuses this account and patience ran out
    └── InvariantViolation             1   a bug: an internal check failed, and pinstream stopped

Every message is one line that says what happened and what to do. It never contains personal data or a secret. The
rejection of a single record (undecodable, unconvertible, refused) is not an error but a value, see
`consumer.engine.model.Rejection`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Final

# Share of letters that two names have in common, in order, below which one is not a misspelling of the other:
# "purchase" and "search" share 43 %, "customer.email" and "customer.emails" 97 %.
_LIKENESS: Final = 0.6
_MAX_KNOWN: Final = 30  # names that `or_all` lists: the symbols of an enum may be hundreds


class PinstreamError(Exception):
    """Root of the tree; ``exit_code`` is the exit code of the process."""

    exit_code = 1


class UsageError(PinstreamError):
    """The command line is invalid."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is invalid: unknown, unreadable, out of bounds, or in conflict with another one."""


class MappingError(SettingsError):
    """The mapping file contradicts itself, the platform's names, or the schema."""


class SchemaError(SettingsError):
    """A schema file cannot be read or is not Avro, or the required schema is missing."""


class InputError(PinstreamError):
    """A file given as input cannot be read to its end."""


class Incomplete(PinstreamError):
    """A bounded run (replay, redrive) ended before all its records were settled."""


class KafkaError(PinstreamError):
    """The brokers cannot be reached or refuse access, or a topic is missing.

    `may_pass`: it is an outage as far as known, which may end by itself. `pinstream run` waits for that.
    """

    def __init__(self, text: str, *, may_pass: bool = False) -> None:
        super().__init__(text)
        self.may_pass = may_pass


class RegistryError(PinstreamError):
    """The schema registry cannot be used at all. (A single unknown id is not an error: its records wait.)"""


class KeyStoreError(PinstreamError):
    """The key store cannot be opened, read or written."""

    needs_restart = False
    """True if only a restart of this process can open it again."""
    lease_lost = False
    """True if claims in a shared store do not hold any more."""


class WorkersFailed(PinstreamError):
    """A worker of ``pinstream run --workers N`` could not be kept running."""


class DestinationRefused(PinstreamError):
    """The destination has refused this token or account for longer than the configured patience."""

    exit_code = 3


class InvariantViolation(PinstreamError):
    """An internal check failed. pinstream stops before it commits, so that a bug does not lose an event."""


def bug(what: str) -> InvariantViolation:
    """Return the error to raise where an internal check has failed."""
    return InvariantViolation(f"{what}; this is a bug, please report it")


NO_ROOM: Final = (
    "there is too little memory or address space, or no room for another thread: raise the limits (ulimit -v and -u, "
    "or those of the container for memory and pids)"
)
NO_FILES: Final = "raise the limit of open files (ulimit -n, or LimitNOFILE= of a systemd unit)"


def limit_met(error: BaseException) -> str:
    """Return what to do if the error is a limit of this process that was met; empty: it is none."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        return f"too many files are open: {NO_FILES}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "a disk is full, which may be that of the command's output: make room"
    # Of the interpreter, and of the loader of shared libraries: they have no errors of their own for it.
    texts = ("can't start new thread", "failed to map segment", "cannot allocate memory")
    is_met = isinstance(error, MemoryError) or number == errno.ENOMEM
    return NO_ROOM if is_met or any(text in str(error).lower() for text in texts) else ""


def missing_extra(extra: str) -> str:
    """Return the text about an extra that is needed and not installed. No package is published, so it names a clone."""
    return f"the extra {extra} is not installed: run pip install '.[{extra}]' in a clone of pinstream"


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the one of `known` that `name` probably means, for an error about a name that does not exist.

    Empty if none is similar: a bad guess would mislead. Upper and lower case are the same.
    """
    wanted, spelled = name.lower(), {one.lower(): one for one in known}
    # People leave the first part of a name out: "em" of "user_data.em", "ios" of "app_ios".
    ends = [one for one in spelled if one.endswith((f".{wanted}", f"_{wanted}"))]
    import difflib  # a mistake is seldom

    near = difflib.get_close_matches(wanted, spelled, n=1, cutoff=_LIKENESS) or sorted(ends, key=len)
    return spelled[near[0]] if near else ""


def or_all(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about a name that is not one of a few: the probable one, or else all of them."""
    few = list(known)
    near = nearest(name, few)
    return f"the nearest is {near!r}" if near else f"known: {first_of([*map(repr, few)], _MAX_KNOWN)}"


def first_of(names: Sequence[str], maximum: int = 3) -> str:
    """Return the first names as text, and how many more there are."""
    more = len(names) - maximum
    return ", ".join(names[:maximum]) + (f" and {more} more" if more > 0 else "")
