"""The frozen values the core goes by: limits, intervals, patience. Their state lives beside.

Times are in seconds, sizes in bytes. Defaults are those of contract.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from consumer.engine.offset_map import MOST

AWAY = 2.0
"""Seconds. Far below every session time-out; a false alarm costs no more than a commit."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Full-jitter exponential backoff: uniform between 0 and ``min(cap, base * 2**attempt)``.

    Full jitter spreads a herd best (AWS Architecture Blog, "Exponential Backoff And Jitter").
    """

    base: float = 0.5
    cap: float = 30.0

    def ceiling(self, failures: int) -> float:
        """The longest delay after so many failures in a row (1 is the first)."""
        return float(min(self.cap, self.base * 2 ** min(failures - 1, 32)))

    def delay(self, failures: int, jitter: float) -> float:
        """The delay for `jitter`, a uniform random number from 0 to 1."""
        return self.ceiling(failures) * jitter


@dataclass(frozen=True, slots=True)
class Policy:
    """All that can be set about the pipeline."""

    accounts: int = 1
    """How many ad accounts are configured."""
    batch_events: int = 1000
    batch_bytes: int = 4 * 1024 * 1024
    linger: float = 0.5
    concurrency: int = 8
    calls_per_minute: int = 5000
    max_open_events: int = 20_000
    max_open_bytes: int = 128 * 1024 * 1024
    commit_interval: float = 1.0
    halt_patience: float = 900.0
    """How long the destination may refuse this account before giving up; 0 is for ever."""
    unreachable_after: float = 30.0
    """After so long without a verdict on any call the destination counts as unreachable."""
    schema_patience: float = 300.0
    """How long the registry must say "no such schema" before that is final for a record that waits; 0: for ever."""
    registry_concurrency: int = 8
    """Questions to the schema registry at once."""
    registry_calls_per_second: float = 20.0
    stall_after: float = 120.0
    """With work to do, and nothing settled for this long, a stall is reported."""
    throttle_cap: float = 300.0
    """The longest a Retry-After or x-ratelimit-reset is obeyed: a header must not stop us for a day."""
    map_bytes: int = MOST
    """The most that a commit's metadata may take: what brokers accept by default."""
    destination: str | None = None
    """The tag of where events go (`consumer.engine.destination`), for keys and commits; None: not said."""
    away: float = AWAY
    """After so long without an input a process first proves that its partitions are still its own. Shorter than
    any session time-out; while there is nothing else to do it looks at the clock twice as often."""
    dead_letter_share: float = 1.0
    """Intake stops when more than this share of a topic's latest records would be dead letters; 1: it never does."""
    dead_letter_sample: int = 1000
    """How many of the latest records, in the order of their offsets, the share is taken of; never of fewer."""
    events_per_second: float = math.inf
    """A replay's pace: of the events that go on, filtered ones and duplicates aside."""
    most_records: int | None = None
    """A replay's limit: at most so many records are read, those aside that its ``--where`` left out."""
    trace_links: int = 0
    """Of so many of its records a `Send` says in which trace they were written; 0: nobody looks."""
    delivery_backoff: Backoff = Backoff()
    inner_backoff: Backoff = Backoff(base=0.1, cap=10.0)
    """For the key store, the dead-letter topic, the registry: near, and needed by all."""
    probe_backoff: Backoff = Backoff(base=2.0, cap=30.0)
