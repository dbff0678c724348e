"""What the command line asks of a replay, read and checked before anything is opened."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from consumer.adapters.kafka import Bound
from consumer.commands.parsing import check_order, parse_bound, parse_rate
from consumer.commands.replay.selection import Condition, conditions
from consumer.errors import UsageError, nearest

_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """A replay as it was asked for. `rate` in events a second, `max_age` as a duration's text."""

    topics: tuple[str, ...]
    partitions: tuple[str, ...]
    start: Bound
    stop: Bound
    where: tuple[Condition, ...]
    name: str | None
    dry_run: bool
    ignore_dedup: bool
    rate: float | None
    limit: int | None
    max_age: str | None
    as_json: bool

    def fingerprint(self) -> str:
        """What tells one replay from another under the same name: which records, not how fast or how many."""
        meant = [
            sorted(self.topics),
            sorted(self.partitions),
            str(self.start),
            str(self.stop),
            sorted((one.field, one.equal, sorted(one.values)) for one in self.where),
            self.ignore_dedup,
            self.max_age,
        ]
        return hashlib.blake2b(orjson.dumps(meant), digest_size=8).hexdigest()


def parse_where(texts: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of ``--where``. Raises `UsageError`."""
    try:
        found = conditions(texts)
    except ValueError as error:
        raise UsageError(f"--where {error}") from None
    for condition in found:
        if condition.field == "ad_account" and not all(value.isdigit() for value in condition.values):
            raise UsageError("--where ad_account=… takes the digits of an ad account")
    return found


def check_values(where: Sequence[Condition], known: frozenset[str], accounts: Sequence[str]) -> None:
    """That what is asked for can come at all, under a mapping whose names are `known`. Raises `UsageError`."""
    for account in sorted(
        one for condition in where if condition.field == "ad_account" for one in condition.values
    ):
        if account not in accounts:
            raise UsageError(
                f"--where ad_account={account}: not one of PINTEREST_AD_ACCOUNT_ID and PINTEREST_EXTRA_AD_ACCOUNT_IDS; "
                "events go to no other"
            )
    for value in sorted(
        one for condition in where if condition.field == "event_name" for one in condition.values
    ):
        if value not in known:
            near = nearest(value, sorted(known), similar=True)
            hint = f"; the nearest that is sent is {near}" if near else ""
            raise UsageError(
                f"--where event_name={value}: the mapping sends no event of this name{hint} (it is the platform's "
                "name that is asked for, not the record's event type)"
            )


def parse_name(text: str | None) -> str | None:
    """A name that can be part of a group's name and of a file's. Raises `UsageError`."""
    if text is not None and not _NAME.fullmatch(text):
        raise UsageError(
            f"--name {text[:60]!r} cannot be: use up to 100 letters, digits, dots, dashes, underscores"
        )
    return text


def read_options(
    *,
    topics: tuple[str, ...],
    partitions: tuple[str, ...],
    start: str,
    stop: str,
    where: tuple[str, ...],
    rate: str | None,
    name: str | None,
    dry_run: bool,
    **others: Any,
) -> ReplayOptions:
    """The options as the command line has them, checked as far as nobody need be asked. Raises `UsageError`."""
    now = time.time()
    begin, end = parse_bound(start, "--from", now), parse_bound(stop, "--to", now)
    check_order(begin, end)
    if name is not None and dry_run:
        raise UsageError("--name and --dry-run: a dry run keeps no progress; leave out one of them")
    return ReplayOptions(
        topics=tuple(dict.fromkeys(topics)),
        partitions=tuple(dict.fromkeys(partitions)),
        start=begin,
        stop=end,
        where=parse_where(where),
        rate=parse_rate(rate),
        name=parse_name(name),
        dry_run=dry_run,
        **others,
    )
