"""The error tree: every error a person can meet, and the exit code it ends the process with.

::

    PinstreamError                     1   something failed
    ├── UsageError                     2   the command line asks for what cannot be
    │   └── SettingsError              2   a setting (or a file it names) cannot be; names the variable
    │       ├── MappingError           2   the mapping file contradicts itself or the schema
    │       └── SchemaError            2   a schema file is not Avro, or is not there
    ├── InputError                     1   a file cannot be read to its end
    ├── Incomplete                     1   a bounded run ended before all of it was settled
    ├── KafkaError                     1   brokers unreachable, refused, or a topic is missing
    ├── RegistryError                  1   the schema registry cannot be used at all
    ├── KeyStoreError                  1   the key store cannot be opened, read or written
    ├── WorkersFailed                  1   a worker could not be kept running
    ├── DestinationRefused             3   the destination refuses this account and patience ran out
    └── InvariantViolation             1   a bug: the core found its own books wrong, and stopped

Every message is one line that says what happened and what to do, and never holds personal data or a
secret. Verdicts on a single record (undecodable, unconvertible, refused) are not errors: they are values,
see `consumer.engine.model.Rejection`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PinstreamError(Exception):
    """Root of the tree; ``exit_code`` is what the process ends with."""

    exit_code = 1


class UsageError(PinstreamError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting cannot be: unknown, unreadable, out of bounds, or at odds with another one."""


class MappingError(SettingsError):
    """The mapping file contradicts itself, the platform's names, or the schema."""


class SchemaError(SettingsError):
    """A schema file cannot be read or is not Avro, or the schema asked for is not there."""


class InputError(PinstreamError):
    """A file given as input cannot be read to its end."""


class Incomplete(PinstreamError):
    """A bounded run (replay, redrive) ended before all that was asked for is settled."""


class KafkaError(PinstreamError):
    """The brokers cannot be reached, refuse us, or lack a topic."""


class RegistryError(PinstreamError):
    """The schema registry cannot be used at all (a single unknown id is no error: it waits)."""


class KeyStoreError(PinstreamError):
    """The key store cannot be opened, read or written."""

    needs_restart = False
    """Whether only a new start of this process can open it."""


class WorkersFailed(PinstreamError):
    """A worker of ``pinstream run --workers N`` could not be kept running."""


class DestinationRefused(PinstreamError):
    """The destination refuses this token or account, and the configured patience ran out."""

    exit_code = 3


class InvariantViolation(PinstreamError):
    """The core found its own books wrong. Stopping before it commits is what keeps a bug from losing an event."""


def nearest(name: str, known: Iterable[str], *, similar: bool = False) -> str:
    """The one of `known` that is spelled most like `name`, for an error about a name that does not exist.

    With `similar`, only one that is likely to be meant; an empty string if there is none.
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=0.6 if similar else 0.0)), "")
