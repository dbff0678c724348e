"""Random histories of a key store, checked against a plain dict of stamps.

The model has the stamp of each key and whether the store may have dropped it: it may once a call has seen a time at
which the key was out of the window (its bucket may have been dropped, and the clock may go back afterwards), or once
the store has counted keys as evicted early. It may never find a key that was not delivered.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.memory import MemoryKeyStore
from consumer.ports import KeyStore
from tests.adapters.key_store.helpers import MIB, NOON, disk_usage, key

_FEW = st.integers(min_value=0, max_value=30)
_BACK_AND_FORTH = st.sampled_from([0.0, 0.3, 1.0, 2.5, 4.0, 5.0, 11.0, 60.0, -0.7, -3.0, -12.0, -100.0])


class MemoryHistory(RuleBasedStateMachine):
    """A random history of the store in memory."""

    limit = MIB // 8
    flood_unit = 30

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = NOON
        self.stamps: dict[bytes, int] = {}
        self.may_forget: set[bytes] = set()
        self.next_fresh = 1000

    def make(self) -> KeyStore:
        """Open the store; subclasses whose store is kept open the same one again."""
        return MemoryKeyStore(self.window, self.limit)

    @initialize(window=st.sampled_from([1.0, 7.0, 10.0, 10.5, 40.0]))
    def open(self, window: float) -> None:
        """Begin with an empty store."""
        self.window = Window.of(window)
        self.seconds = math.ceil(window)
        self.store = self.make()

    @rule(by=_BACK_AND_FORTH)
    def pass_time(self, by: float) -> None:
        """Let the clock go on or set it back."""
        self.now += by

    @rule(numbers=st.lists(_FEW, min_size=1, max_size=12))
    def remember(self, numbers: list[int]) -> None:
        """Deliver a few events, known ones among them."""
        chunk = [key(number) for number in numbers]
        self.deliver(chunk, of_interest=chunk)

    @rule(units=st.integers(min_value=3, max_value=20))
    def flood(self, units: int) -> None:
        """Deliver enough new events to reach the size limit; some of them are looked up later."""
        first, self.next_fresh = self.next_fresh, self.next_fresh + units * self.flood_unit
        chunk = [key(number) for number in range(first, self.next_fresh)]
        self.deliver(chunk, of_interest=chunk[:: self.flood_unit])

    @rule()
    def expire(self) -> None:
        """Expire keys."""
        self.runner.run(self.store.expire(self.now))
        self.note_time_seen()

    @invariant()
    def answers_agree(self) -> None:
        """The store answers for every key as the model does, where the model is certain."""
        if not hasattr(self, "store"):
            return
        asked = [*self.stamps, key(999)]
        oldest = math.floor(self.now) - self.seconds
        for asked_key, known in zip(
            asked, self.runner.run(self.store.look_up(b"".join(asked), self.now)), strict=True
        ):
            delivered = self.stamps.get(asked_key, -1) >= oldest
            if asked_key in self.may_forget:
                assert delivered or not known
            else:
                assert known == delivered

    @invariant()
    def size_is_bounded(self) -> None:
        """The limit holds after every step."""
        if hasattr(self, "store"):
            assert self.store.statistics().bytes_used <= self.limit

    def deliver(self, chunk: list[bytes], of_interest: list[bytes]) -> None:
        """Remember `chunk` and note in the model what that means for the keys of interest."""
        evicted = self.store.statistics().evicted_early
        self.runner.run(self.store.confirm(b"".join(chunk), self.now))
        self.note_time_seen()
        if self.store.statistics().evicted_early > evicted:
            self.may_forget.update(self.stamps)
        for delivered in of_interest:
            self.stamps[delivered] = max(self.stamps.get(delivered, 0), math.floor(self.now))
            self.may_forget.discard(delivered)

    def note_time_seen(self) -> None:
        """Note which keys are out of the window now: the store may have dropped them for good."""
        oldest = math.floor(self.now) - self.seconds
        self.may_forget.update(known for known, stamp in self.stamps.items() if stamp < oldest)

    def teardown(self) -> None:
        """Close the store."""
        if hasattr(self, "store"):
            self.runner.run(self.store.close())
        self.runner.close()


class DiskHistory(MemoryHistory):
    """A random history of the store on disk, which may also be closed and opened again."""

    limit = MIB
    flood_unit = 200

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()

    def make(self) -> KeyStore:
        """Open the store in the folder of this history."""
        return DiskKeyStore(self.folder.name, self.window, self.limit)

    @rule()
    def reopen(self) -> None:
        """Restart the store: all keys are still there."""
        self.runner.run(self.store.close())
        self.store = self.make()

    @invariant()
    def disk_is_bounded(self) -> None:
        """The files on disk stay within the limit."""
        assert disk_usage(Path(self.folder.name)) <= self.limit

    def teardown(self) -> None:
        """Close the store and remove its folder."""
        super().teardown()
        self.folder.cleanup()


class JournalHistory(DiskHistory):
    """A history of a store so large that its buckets have journals, which floods fill over and over."""

    limit = 16 * MIB
    flood_unit = 20


TestMemoryHistory = MemoryHistory.TestCase
TestMemoryHistory.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
TestDiskHistory = DiskHistory.TestCase
TestDiskHistory.settings = settings(max_examples=20, stateful_step_count=25, deadline=None, derandomize=True)
TestJournalHistory = JournalHistory.TestCase
TestJournalHistory.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, derandomize=True
)
