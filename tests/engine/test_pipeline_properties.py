"""The whole core against inputs of all kinds that hypothesis chooses, step by step.

Theory of operation. The world has a log per partition, a key store, an API and a broker; each rule does one thing
that can happen at any moment: records come in, a waiting command is answered in any way, time passes, the group
revokes, loses or assigns a partition, the process is killed. The invariant compares commits with the world: each
record below a committed offset was accepted by the API, is on the dead-letter topic, or is one to be filtered. At
the end every command is answered favourably, and all records must settle in a bounded number of steps.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consumer.engine import messages as m
from consumer.engine.model import Position
from consumer.engine.reading import split_keys
from tests.engine.building import (
    ACCOUNT,
    MACHINE,
    NO,
    OTHER_ACCOUNT,
    UNDECODABLE,
    Core,
    answer_body,
    event,
    event_ids,
    filtered,
    of_schema,
    ref,
)

PARTITIONS = (0, 1)
IDS = [f"good{n}" for n in range(6)] + ["bad0", "bad1"]
VALUES = st.one_of(
    st.sampled_from(IDS).map(event),
    st.sampled_from(IDS).map(lambda one: event(one, OTHER_ACCOUNT)),
    st.sampled_from([filtered(), None, UNDECODABLE, of_schema("good9", "1"), of_schema("x", "missing")]),
)
REFUSALS = st.sampled_from([401, 403, 404])
TROUBLES = st.sampled_from(
    [
        (500, b"", {}),
        (200, b"nonsense", {}),
        (200, b"{}", {}),
        (429, b"", {}),
        (429, b"", {"retry-after": "3"}),
        (429, b"", {"x-ratelimit-reset": "400", "x-ratelimit-remaining": "0"}),
    ]
)


class World(RuleBasedStateMachine):
    """A log, an API, a key store, a broker, and a core that may be killed."""

    def __init__(self) -> None:
        super().__init__()
        self.log: dict[int, list[bytes | None]] = {n: [] for n in PARTITIONS}
        self.committed = dict.fromkeys(PARTITIONS, 0)
        self.accepted: set[tuple[str, str]] = set()
        """Account and event id of all events that the API processed."""
        self.letters: set[tuple[int, int]] = set()
        self.keys: set[bytes] = set()
        self.epoch = 0
        self.heard = 0
        self.calm = 6
        """Steps until the next incident."""
        self.start()

    def start(self) -> None:
        """Start a new process."""
        self.core = Core(
            batch_events=3,
            linger=0.2,
            concurrency=2,
            max_open_events=12,
            accounts=2,
            halt_patience=0.0,
            calls_per_minute=40,
        )
        self.heard = 0
        self.owned: set[int] = set()
        self.leaving: dict[int, int] = {}
        """Revoked partitions by the number of their revoke."""

    def listen(self) -> None:
        """Commit the positions of new releases, and give up their partitions."""
        for one in self.core.log[self.heard :]:
            if isinstance(one, m.Release):
                partition = self.leaving.pop(one.number)
                self.commit(one.positions)
                self.owned.discard(partition)
        self.heard = len(self.core.log)

    def commit(self, positions: object) -> None:
        """Let the broker accept positions, which must be of partitions that are still ours."""
        assert isinstance(positions, list | tuple)
        for position in positions:
            assert isinstance(position, Position)
            assert position.partition in self.owned, "a commit for a partition that is not ours"
            self.committed[position.partition] = position.next_offset

    # -- the group

    def assign(self, partition: int) -> None:
        """Assign a partition that is not assigned."""
        if partition in self.owned:
            return
        self.epoch += 1
        self.core.assign(partition, self.epoch, self.committed[partition])
        self.owned.add(partition)
        self.listen()

    @precondition(lambda self: self.calm <= 0)
    @rule(data=st.data(), late=st.booleans())
    def incident(self, data: st.DataObject, late: bool) -> None:
        """Let a large incident happen, then none for some steps, so that runs get far enough."""
        incidents = (self.revoke, self.lose, self.kill, self.stop, self.go_back)
        data.draw(st.sampled_from(incidents))(data.draw(st.sampled_from(PARTITIONS)), 0.0 if late else 5.0)
        self.listen()
        self.calm = data.draw(st.integers(0, 12))

    def revoke(self, partition: int, grace: float) -> None:
        """Let the group revoke a partition."""
        if partition in self.owned and partition not in self.leaving.values():
            number = 1_000_000 + self.core.pipeline.context.number()
            self.leaving[number] = partition
            self.core.revoke(partition, number=number, grace=grace)

    def lose(self, partition: int, _: float) -> None:
        """Let a partition be lost to another member."""
        self.core.lose(partition)
        self.listen()
        assert partition not in self.leaving.values(), "a revoke of what is lost must be answered"
        self.owned.discard(partition)

    def kill(self, _: int, __: float) -> None:
        """Kill the process: the partitions are assigned again, from the committed positions."""
        self.start()

    def stop(self, _: int, grace: float) -> None:
        """Stop the process at its deadline without further answers, and start the next one."""
        self.core.feed(m.StopRequested(grace))
        self.core.until(lambda: any(isinstance(one, m.Stop) for one in self.core.log), seconds=grace)
        [stop] = [one for one in self.core.log if isinstance(one, m.Stop)]
        self.listen()
        self.commit(stop.positions)
        self.start()

    def go_back(self, partition: int, grace: float) -> None:
        """Set the position back to the middle of the open records, or to the committed offset."""
        at = self.committed[partition]
        self.core.offsets[partition] = at if grace else (at + self.core.offsets.get(partition, at)) // 2

    # -- records

    @rule(partition=st.sampled_from(PARTITIONS), values=st.lists(VALUES, max_size=6))
    def arrive(self, partition: int, values: list[bytes | None]) -> None:
        """Append records to the log, and fetch as many as there is room for."""
        if len(self.log[partition]) < 40:
            self.log[partition] += values
        self.assign(partition)
        self.fetch(partition)

    def fetch(self, partition: int) -> None:
        """Fetch as many records as there is room for."""
        at = self.core.offsets[partition]
        values = self.log[partition][at : at + self.core.pipeline.room()]
        if values:
            self.core.fetch(*values, partition=partition)

    @rule(seconds=st.sampled_from([0.2, 1.0, 30.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.core.advance(seconds)
        self.listen()

    # -- answers to waiting commands

    @precondition(lambda self: self.core.waiting)
    @rule(data=st.data(), kind=st.lists(st.sampled_from([True, True, False]), min_size=1, max_size=6))
    def answer(self, data: st.DataObject, kind: list[bool]) -> None:
        """Answer some waiting commands in any order, favourably or not."""
        for kindly in kind:
            if self.core.waiting:
                command = data.draw(st.sampled_from(self.core.waiting))
                self.core.waiting.remove(command)
                self.answer_kindly(command) if kindly else self.answer_badly(command, data)
                self.calm -= 1
                self.listen()
        self.core.advance(self.core.policy.linger)
        self.listen()

    def answer_badly(self, command: m.Command, data: st.DataObject) -> None:
        match command:
            case m.LookUpKeys():
                self.core.feed(m.KeyStoreFailed(command))
            case m.StoreKeys():
                self.core.feed(m.KeyStoreFailed(command))
            case m.FetchSchema():
                self.core.feed(m.SchemaUnavailable(command.ref, "timeout"))
            case m.StoreDeadLetters():
                flags = data.draw(
                    st.lists(st.booleans(), min_size=len(command.letters), max_size=len(command.letters))
                )
                self.store_letters(command, flags)
            case m.Commit():
                self.core.feed(m.CommitDone([], "trouble"))
            case m.Send():
                self.answer_send_badly(command, data)
            case _:
                self.answer_kindly(command)

    def answer_send_badly(self, command: m.Send, data: st.DataObject) -> None:
        how = data.draw(st.sampled_from(["lost", "lost after", "refused us", "trouble", "whole"]))
        if how == "lost after":
            self.process(command)
        if how.startswith("lost"):
            self.core.feed(m.Unanswered(command.number, "timeout"))
        elif how == "refused us":
            self.core.answer(command, data.draw(REFUSALS))
        elif how == "trouble":
            self.core.answer(command, *data.draw(TROUBLES))
        elif any(one.startswith("bad") for one in event_ids(command)):
            self.core.answer(command, 400, NO)
        elif command.events > 1:
            self.core.answer(command, 413, NO)
        else:
            self.answer_kindly(command)

    def answer_kindly(self, command: m.Command) -> None:
        match command:
            case m.LookUpKeys():
                self.core.feed(
                    m.KeysLookedUp(command.number, [key in self.keys for key in split_keys(command.keys)])
                )
            case m.StoreKeys():
                self.keys.update(split_keys(command.keys))
                self.core.feed(m.KeysStored(command.number))
            case m.FetchSchema():
                missing = command.ref == ref("missing")
                self.core.feed(
                    m.SchemaMissing(command.ref) if missing else m.SchemaFound(command.ref, "good")
                )
            case m.StoreDeadLetters():
                self.store_letters(command, [True] * len(command.letters))
            case m.Commit():
                ours = [one for one in command.positions if one.partition in self.owned]
                self.commit(ours)
                self.core.feed(m.CommitDone(ours, None))
            case m.ReadToken():
                self.core.feed(m.TokenRead(False))
            case m.AskTime():
                self.core.tell_time()
            case m.Send():
                self.core.answer(command, 200, answer_body(self.process(command)))
            case _:
                raise AssertionError(f"what waits is no command that is answered: {command}")

    def process(self, command: m.Send) -> list[tuple[str, str | None, str | None]]:
        """Let the API process a call, refusing its bad events for good."""
        bad = [one.startswith("bad") for one in event_ids(command)]
        good = [one for one, refused in zip(event_ids(command), bad, strict=True) if not refused]
        self.accepted.update((command.account, one) for one in good)
        return [("failed", "bad", None) if refused else ("processed", None, None) for refused in bad]

    def store_letters(self, command: m.StoreDeadLetters, flags: list[bool]) -> None:
        for letter, stored in zip(command.letters, flags, strict=True):
            if stored:
                self.letters.add((letter.partition, letter.record.offset))
        self.core.feed(m.DeadLettersStored(command.number, flags))

    # -- invariants

    def fate(self, partition: int, offset: int) -> bool:
        """Return whether a record has the outcome that it should have."""
        value = self.log[partition][offset]
        if value in (None, filtered()):
            return True
        lettered = (partition, offset) in self.letters
        if value == UNDECODABLE or value == of_schema("x", "missing"):
            return lettered
        for account in (ACCOUNT, OTHER_ACCOUNT):
            for one in IDS:
                if value == event(one, account):
                    return lettered if one.startswith("bad") else (account, one) in self.accepted
        return (ACCOUNT, "good9") in self.accepted

    @invariant()
    def nothing_unsettled_is_committed_past(self) -> None:
        for partition, committed in self.committed.items():
            for offset in range(committed):
                assert self.fate(partition, offset), f"{partition}:{offset} is lost"

    def teardown(self) -> None:
        """Answer everything favourably: all records settle and are committed, in a bounded number of steps."""
        if self.leaving:
            self.core.advance(5.0)
            self.listen()
        assert not self.leaving
        for partition in PARTITIONS:
            self.assign(partition)
        for _ in range(3000):
            for partition in PARTITIONS:
                self.fetch(partition)
            if self.core.waiting:
                self.answer_kindly(self.core.waiting.pop(0))
                continue
            if all(self.committed[n] == len(self.log[n]) for n in PARTITIONS):
                break
            deadline = self.core.pipeline.next_deadline()
            assert deadline is not None, "it waits for nothing"
            self.core.now = max(self.core.now, deadline)
            self.core.tick()
        assert self.committed == {n: len(values) for n, values in self.log.items()}
        self.nothing_unsettled_is_committed_past()
        totals = self.core.statistics().totals
        assert totals.open == 0
        assert self.core.statistics().claims == 0


TestWorld = World.TestCase
TestWorld.settings = settings(MACHINE, max_examples=300, stateful_step_count=30)
