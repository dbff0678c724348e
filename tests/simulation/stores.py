"""The key store and the schema registry of a world, and the key store that its members share.

Theory of operation. `KeyStore` is one that processes of a host use. `SharedStore` is the server of a shared one. It
checks what it is asked against the truth: no member may claim what another has in flight, unless that one's lease had
ended or the server lost something; and a call may begin only while the server holds our claims for as long as the call
may take. All members' calls to an account together keep its quota, unless the server lost its counts. What a lease that
ended in the middle of a call can double is excused here, key by key, when another member takes the event over; what the
server lost, when it goes back.

`KeyClient` carries a member's requests there and back. A request takes effect at one moment and is answered at another;
it may be refused, be lost before or after it took effect, or be answered after its time limit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.shared.server import Unclear
from consumer.engine import messages as m
from consumer.engine.messages import SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import REAL_API, Announcement, SchemaRef
from consumer.engine.reading import Keys, split_keys
from consumer.errors import KeyStoreError
from consumer.ports import Claimed, GrantedPermits, Renewed
from tests.simulation.records import LATE, MADE_UP, MISSING, Spec
from tests.simulation.truth import Violation, longest_delay
from tests.support.shared_keys import Asked, Call, SharedKeys, SharedSession

if TYPE_CHECKING:
    from tests.simulation.member import Member
    from tests.simulation.world import World

_EPSILON = 1e-6
CLOCKS_DIFFER = 130.0
"""Seconds by which two machines' times may differ: less than a minute is not corrected."""
TIME_LIMIT = 2.0
"""Seconds after which a client stops waiting for an answer."""
Command = m.LookUpKeys | m.StoreKeys | m.ReleaseKeys | m.RenewLease | m.AcquirePermits | m.ShareNote


class KeyStore:
    """Delivered keys, when they were stored, and when a process said that was; survives the processes that use it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._window = Window.of(world.knobs.window)
        self._stamps: dict[bytes, int] = {}
        # All of it went to another destination once (README's own way: a sandbox first): that must mean nothing here.
        self._stored_at: dict[bytes, float] = {
            Keys(REAL_API).of(spec.account, "checkout", spec.event_id): world.now for spec in world.specs
        }

    def look_up(self, keys: Sequence[bytes], now: float) -> list[bool] | None:
        """For each key, whether it was stored within the window at `now`, as a process says; None: the store does not
        answer."""
        world = self._world
        if world.in_spell("keys") or world.roll(world.rates.look_up_fails):
            return None
        oldest = self._window.oldest(now)
        # What is out of the window is dropped for good.
        self._stamps = {key: stamp for key, stamp in self._stamps.items() if stamp >= oldest}
        return [self._find(key) for key in keys]

    def _find(self, key: bytes) -> bool:
        world = self._world
        at = self._stored_at.get(key)
        if (
            at is not None
            and at + world.knobs.window > world.now
            and not world.roll(world.rates.store_forgets)
        ):
            if key in self._stamps:
                return True
            if at + world.knobs.window > world.now + CLOCKS_DIFFER:
                return False  # forgotten because a clock is wrong: that is no excuse
        # Expired or forgotten: the next one is new. Or two members each hold a record of this key, and neither knows.
        apart = world.truth.shared if world.knobs.own_stores else world.truth.spread
        if at is not None or (key in apart and world.knobs.members > 1):
            world.truth.excuse([key])
        return False

    def store(self, keys: Sequence[bytes], now: float) -> bool:
        """Whether the caller hears of success; the keys may have been written all the same. `now`: as the process
        says."""
        world = self._world
        for key in keys:
            if not world.truth.accepted[key]:
                raise Violation("a key is stored after delivery", f"{key.hex()} was not accepted")
        if not (world.in_spell("keys") or world.roll(world.rates.store_fails)):
            self._write(keys, now)
            return True
        self._write(keys[: world.random.choice((0, 0, len(keys) // 2, len(keys)))], now)
        return False

    def _write(self, keys: Sequence[bytes], now: float) -> None:
        for key in keys:
            self._stored_at[key] = self._world.now
            self._stamps[key] = max(self._window.stamp(now), self._stamps.get(key, 0))
            self._world.truth.store_key(key)


class Registry:
    """Has every schema but the made-up ones, some of them late. Its earlier answers are on disk, or other
    schemas are."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._on_disk: dict[SchemaRef, str] = {}

    def find(self, ref: SchemaRef) -> SchemaFound | SchemaMissing | SchemaUnavailable:
        """Its answer at this moment."""
        world = self._world
        if world.in_spell("registry") or world.roll(world.rates.registry_fails):
            cached = self._on_disk.get(ref)
            return (
                SchemaUnavailable(ref, "timeout")
                if cached is None
                else SchemaFound(ref, cached, unanswered=SchemaUnavailable(ref, "timeout"))
            )
        lags = ref in LATE and world.now < world.base + world.knobs.registry_lag
        if ref == MISSING or int(ref.value) >= MADE_UP or lags:
            return SchemaMissing(ref)
        schema = world.form.schema(ref)
        # What a process that starts later may find there.
        self._on_disk[ref] = world.form.other_schema() if world.random.random() < 0.3 else schema
        return SchemaFound(ref, schema)


class SharedStore(SharedKeys):
    """The server."""

    def __init__(self, world: World) -> None:
        super().__init__(lambda: world.now)
        self._world = world
        self.window = Window.of(world.knobs.window)
        self._went_back_at = float("-inf")
        self._taken_over: set[tuple[Member, bytes]] = set()
        self._delivered_at: dict[bytes, float] = {}
        """When keys were really delivered, whatever the members' clocks say."""
        self._begun: dict[str, deque[float]] = {}
        """For each account, when the calls of the last 60 seconds began, of all members."""

    # -- what clients ask

    def claim(self, session: str, ours: Collection[str], oldest: int, keys: bytes) -> bytes:
        """See `SharedKeys.claim`."""
        before = [(key, self.claims.get(key)) for key in split_keys(keys)]
        found = super().claim(session, ours, oldest, keys)
        for (key, holder), flag in zip(before, found, strict=True):
            # What was set back may have a claim again that this member gave up long ago.
            revived = self._went_back_at >= self._world.base
            if flag == 0 and (revived or holder not in {session, *ours}):
                self._taken(key, holder, session)
        return found

    def _taken(self, key: bytes, holder: str | None, session: str) -> None:
        """A session of another member claims this key; `holder` had it before."""
        world = self._world
        if key in self.delivered:
            if self._delivered_at[key] + self.window.seconds <= world.now + CLOCKS_DIFFER:
                world.truth.excuse([key])  # longer ago than the window
            if holder is None:
                return  # who stored it may not have heard so yet, and has no claim any more
        for member in world.alive:
            if session in member.keys.session.names or key not in member.watch.out:
                continue
            entry = (member, key)
            lease_ended = holder in member.keys.session.names or entry in self._taken_over
            if world.knobs.graceful or not (lease_ended or self._went_back_at >= world.base):
                raise Violation("what is in flight is claimed by no other member", f"{key.hex()} of {member}")
            self._taken_over.add(entry)
            world.truth.excuse([key])

    def confirm(self, member: int, ours: Collection[str], stamp: int, keys: bytes) -> bytes:
        """See `SharedKeys.confirm`."""
        truth = self._world.truth
        for key in split_keys(keys):
            if not truth.accepted[key]:
                raise Violation("a key is stored after delivery", f"{key.hex()} was not accepted")
        stored = super().confirm(member, ours, stamp, keys)
        for key, flag in zip(split_keys(keys), stored, strict=True):
            if flag:
                truth.store_key(key)
                self._delivered_at[key] = self._world.now
        return stored

    # -- what happens to it

    def go_back(self) -> None:
        """See `SharedKeys.go_back`: events delivered since may be sent again if they are read again."""
        before = self.delivered
        super().go_back()
        self._went_back_at = self._world.now
        self._world.truth.excuse(key for key, stamp in before.items() if self.delivered.get(key, -1) < stamp)

    # -- what must hold

    def check_quota(self, account: str) -> None:
        """Check, when a call to this account begins, that all members together keep the quota."""
        now, maximum = self._world.now, self._world.policy.calls_per_minute
        calls = self._begun.setdefault(account, deque())
        while calls and now - calls[0] >= 60.0 - _EPSILON:
            calls.popleft()
        if len(calls) >= maximum and now > self._went_back_at + 60.0:
            raise Violation(
                "members together keep the quota", f"{len(calls) + 1} calls in {now - calls[0]} s"
            )
        calls.append(now)

    def check_send(self, member: Member, specs: Iterable[Spec]) -> None:
        """Check, when a call begins, that this member has claimed its events for as long as the call may take."""
        until = self._world.now + self._world.policy.call_timeout
        for spec in specs:
            holder = self.claims.get(spec.key, "nobody")
            if holder in member.keys.session.names and self.leases.get(holder, float("-inf")) >= until:
                continue
            if member.keys.heard_at >= self._went_back_at:
                raise Violation("a call begins under a lease that holds for it", f"{spec} of {holder}")
            self._world.truth.excuse([spec.key])  # the claim is lost, and the member cannot know yet


class KeyClient:
    """One member's connection to the server."""

    def __init__(self, world: World, member: Member) -> None:
        self._world = world
        self._member = member
        said = Announcement("shop", "", world.policy.destination or "", ())
        self.session = SharedSession(world.shared, world.shared.window, world.policy.lease, said)
        self.heard_at = float("-inf")
        """When the server decided what the member knows about its claims."""
        self.sent_too = 0
        """Keys that were found delivered although this member may have sent their events in calls without an answer."""
        self._calls_from: dict[str, float] = {}
        """For each account, the moment from which it may ask for calls again."""
        self._calls_failed: Counter[str] = Counter()
        """For each account, how often in a row it got no answer."""

    def perform(self, command: Command) -> None:
        """Ask the server, and give the engine the answer."""
        session, clock = self.session, self._member.pipeline.clock
        request: _Request
        match command:
            case m.LookUpKeys(number, keys):
                request = _Request(
                    self._world, self._member, session.claim(keys, clock.forgotten_at),
                    partial(self._looked_up, number, keys), m.KeyStoreFailed(command),
                )  # fmt: skip
            case m.StoreKeys(number, keys):
                request = _Request(
                    self._world, self._member, session.confirm(keys, clock.delivered_at),
                    lambda stored: m.KeysStored(number, stored), m.KeyStoreFailed(command),
                )  # fmt: skip
            case m.ReleaseKeys(keys):
                request = _Request(
                    self._world, self._member, session.release(keys),
                    lambda _: None, m.KeyStoreFailed(command),
                )  # fmt: skip
            case m.ShareNote(note):
                request = _Request(
                    self._world, self._member, session.share_note(note),
                    lambda _: None, m.KeyStoreFailed(command),
                )  # fmt: skip
            case m.RenewLease(number):
                request = _Request(
                    self._world, self._member, session.renew(),
                    partial(self._renewed, number), m.KeyStoreFailed(command),
                )  # fmt: skip
            case m.AcquirePermits(number, destination, account, calls, per_minute, seconds):
                if self._world.now < self._calls_from.get(account, float("-inf")) - _EPSILON:
                    raise Violation("who got no calls waits before asking again", f"{command}")
                request = _Request(
                    self._world, self._member,
                    session.acquire_permits(f"{destination}:{account}", calls, per_minute, seconds),
                    partial(self._permits_granted, number, account), m.KeyStoreFailed(command),
                )  # fmt: skip
        self._world.later(0.0, request.go_on, partial(next, request.call))

    def _renewed(self, number: int, renewed: Renewed) -> m.LeaseRenewed:
        notes = renewed.notes if self._world.knobs.notes else ()
        return m.LeaseRenewed(number, renewed.session, notes, renewed.others)

    def _looked_up(self, number: int, keys: bytes, claimed: Claimed) -> m.KeysLookedUp:
        delivered = {key for key, flag in zip(split_keys(keys), claimed.found, strict=True) if flag == 1}
        self.sent_too += len(delivered & self._member.watch.unclear)
        return m.KeysLookedUp(number, claimed.found, claimed.session)

    def _permits_granted(self, number: int, account: str, given: GrantedPermits) -> m.PermitsGranted:
        self._calls_failed[account] = 0
        if not given.calls:
            self._calls_from[account] = self._world.now + given.wait
        return m.PermitsGranted(number, account, *given)

    def no_answer(self, failed: m.KeyStoreFailed) -> None:
        """The member is about to learn that the server did not answer."""
        if isinstance(failed.command, m.AcquirePermits):
            account = failed.command.account
            self._calls_failed[account] += 1
            backoff = longest_delay(self._world.policy.inner_backoff, self._calls_failed[account]) / 2
            self._calls_from[account] = self._world.now + backoff

    def leave(self) -> None:
        """The process ends in order, and with it its claims, if the server can be reached."""
        if not self._world.in_spell("keys"):
            self.session.close()


class _Request:
    """One call of the client, which asks the server once or twice."""

    def __init__(
        self,
        world: World,
        member: Member,
        call: Call[Any],
        answered: Callable[[Any], m.Input | None],
        failed: m.KeyStoreFailed,
    ) -> None:
        self.call = call
        self._world = world
        self._member = member
        self._answered = answered
        self._failed = failed
        self._done_at = float("-inf")
        """When the server performed the latest question."""
        self._waits = 0
        """The number of the round trip whose answer it waits for."""

    def go_on(self, resume: Callable[[], Asked | None]) -> None:
        """Continue in the member's process: with the next question, or with the end."""
        member = self._member
        if not member.alive or member.stands_still(self.go_on, resume):
            return
        try:
            asked = resume()
        except StopIteration as done:
            answer = self._answered(done.value)
            if isinstance(answer, m.KeysLookedUp | m.LeaseRenewed):
                member.keys.heard_at = self._done_at
        except KeyStoreError as error:
            if error.lease_lost:
                member.keys.heard_at = self._done_at
                member.feed(m.LeaseLost())
            answer = self._failed
            member.keys.no_answer(self._failed)
        else:
            if asked is None:
                self._world.later(0.05, self.go_on, partial(next, self.call))
            else:
                self._ask(asked)
            return
        if answer is not None:
            member.feed(answer)

    def _ask(self, asked: Asked) -> None:
        world = self._world
        self._waits += 1
        world.later(world.delay(), self._arrive, self._waits, asked)
        world.later(TIME_LIMIT, self._back, self._waits, self._failing(Unclear("no answer in time")))

    def _arrive(self, number: int, asked: Asked) -> None:
        """The question arrives at the server."""
        world = self._world
        if not self._member.takes_effect():
            return
        if world.in_spell("frozen keys"):
            if world.random.random() < 0.8:
                world.later(0.2, self._arrive, number, asked)
            return
        resume: Callable[[], Asked | None]
        fails = world.in_spell("keys") or world.roll(world.rates.look_up_fails)
        if not fails or (not world.in_spell("keys") and world.random.random() < 0.5):
            self._done_at = world.now
            try:
                resume = partial(self.call.send, asked())
            except KeyStoreError as error:
                resume = partial(self.call.throw, error)
        if fails:
            resume = self._failing(
                KeyStoreError("refused") if world.in_spell("keys") else Unclear("the connection broke")
            )
        world.later(world.delay(), self._back, number, resume)

    def _back(self, number: int, resume: Callable[[], Asked | None]) -> None:
        """The answer arrives at the client, unless the client has stopped waiting."""
        if number == self._waits:
            self._waits += 1
            self.go_on(resume)

    def _failing(self, error: KeyStoreError) -> Callable[[], Asked | None]:
        return partial(self.call.throw, error)
