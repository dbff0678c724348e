"""What a seed decides before its world begins: sizes, limits, and how often what goes wrong.

Theory of operation. Worlds differ most where each has only some of the troubles: in a world where everything
fails all the time little ever gets far. So every kind of trouble is switched on or off by the seed first, and
then given a rate. One world in eight has no trouble at all, only graceful rebalances and restarts: there
exactly-once must hold.

`draw` takes overrides by name, so that a test can ask for the worlds it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from random import Random
from typing import Any

from consumer.engine.model import METADATA_BYTES, Backoff, Policy, destination_tag
from consumer.engine.records.offset_map import MAX_IDS

GUARD_SHARE, GUARD_SAMPLE = 0.3, 8
"""Where there is a guard: the share of dead letters among this many latest records of a topic that stops intake."""
DESTINATION = destination_tag("http://simulated/v5", test_mode=False)
AWAY = 1.0
"""Seconds without an input after which a process must prove that it still owns its partitions."""
UNREACHABLE_AFTER = 2.0
"""Seconds without a verdict after which the destination counts as unreachable."""
CLOCKS = (0.0, 0.0, -7200.0, -400.0, -60.0, 3.0, 90_000.0, 8 * 86_400.0)
"""By how many seconds a machine's clock may be wrong."""
SHARED = 0.2
"""Share of the worlds whose members share one key store."""
DIVIDED = 0.3
"""Share of the other worlds whose members divide the quota."""
FUNCTION = 0.1
"""Share of the worlds with a user's function between decoding and the mapping."""
RECEIPTS = 0.25
"""Share of the worlds with a receipts topic."""
SESSION = 3.0
"""Seconds after which the group gives up a member that does not answer."""


@dataclass(frozen=True, slots=True)
class Rates:
    """The probability of each trouble, 0 to 1; the name says where it happens."""

    api_lost_before: float = 0.0
    """The call fails and nothing is processed."""
    api_lost_after: float = 0.0
    """The call is processed and its answer is lost."""
    api_5xx: float = 0.0
    api_lie: float = 0.0
    api_stranger: float = 0.0
    """A proxy answers in the platform's place, with a status that would refuse events or halt the account."""
    api_429: float = 0.0
    api_limit_headers: float = 0.0
    api_whole_batch: float = 0.0
    """A bad event makes the API refuse the whole call (400, 422) instead of the event."""
    look_up_fails: float = 0.0
    store_fails: float = 0.0
    store_forgets: float = 0.0
    """A look-up misses a stored key."""
    letters_fail: float = 0.0
    commit_fails: float = 0.0
    registry_fails: float = 0.0
    slow: float = 0.0
    """Anything takes twenty times as long."""
    stale_fetch: float = 0.0
    """Records of an ended assignment arrive after it ended."""
    begins_below: float = 0.0
    """Reading begins before the committed offset, because the log was recreated."""
    foreign_metadata: float = 0.0
    """The metadata of a committed offset is another tool's, or broken."""
    cut_logs: float = 0.0
    """When a partition changes hands ungracefully, its log is cut and continues with other records (unclean
    leader election)."""


@dataclass(frozen=True, slots=True)
class Incidents:
    """How many of each incident happen in the troubled time."""

    crashes: int = 0
    recreated: int = 0
    """A topic is deleted and created again, longer than before."""
    expulsions: int = 0
    """The group throws a member out, and the member learns of it later."""
    setbacks: int = 0
    """A position goes back."""
    clock_jumps: int = 0
    freezes: int = 0
    """A process stands still for a while without knowing it (SIGSTOP, a suspended machine)."""
    token_spells: int = 0
    account_spells: int = 0
    removals: int = 0
    """The beginning of a log is removed, whether it was read or not."""
    outages: int = 0
    """The API, the key store, the broker's writes or the registry fail completely for a while."""


@dataclass(frozen=True, slots=True)
class StoreFaults:
    """How often the key store that members share has troubles of its own."""

    frozen: int = 0
    """It stands still: it answers late or never, when the question has timed out."""
    full: int = 0
    set_back: int = 0
    """A replica takes over that lacks the writes of the last seconds."""
    flushed: int = 0


@dataclass(frozen=True, slots=True)
class Knobs:
    """One world's parameters. Times in seconds."""

    seed: int
    policy: Policy
    rates: Rates
    incidents: Incidents
    rebalances: int
    restarts: int
    """Graceful restarts."""
    eager: bool
    members: int
    partitions: int
    accounts: int
    records: int
    arrival: float
    """Seconds over which records appear in the log."""
    quiet_at: float
    """All trouble ends here."""
    duplicates: float
    bad: float
    odd: float
    """Share of records that never become an event: tombstones, filtered, undecodable and others."""
    late_schemas: float
    """Share of records whose schema must be fetched."""
    clocks: tuple[float, ...]
    """For each machine, how wrong its clock is when the world begins."""
    registry_lag: float
    """Seconds from the world's start during which the registry says that there are no such schemas."""
    window: float
    grace: float
    latency: float
    body_limit: int
    """The API's own, in bytes."""
    proxy_limit: int
    """Bytes that a proxy accepts while there is trouble; it says so in its own words."""
    metadata_limit: int
    """Bytes that the broker accepts with a committed offset."""
    own_stores: bool
    """Each member has its own key store, as on different machines."""
    shared: bool
    """All members share one key store, which also holds claims."""
    store_faults: StoreFaults
    notes: bool
    """Members learn what other members with the same key store have reported."""
    divided: bool
    """Members divide the quota by how many of them hold partitions."""
    function: bool
    """The user's function gets each event before it is converted, and takes time."""
    receipts: bool
    """Each outcome has a receipt."""
    receipts_fail: float
    """The probability that a write of receipts fails."""
    guarded: bool
    """Too many dead letters stop intake; when all is quiet the process is started again without the guard."""
    reading: str
    """How records are written and read; see `tests.simulation.avro_records`. Everything else is the same."""

    @property
    def graceful(self) -> bool:
        """Without any trouble every event must arrive exactly once."""
        rates = replace(self.rates, api_whole_batch=0.0)
        no_incidents = self.incidents == Incidents() and self.store_faults == StoreFaults()
        return rates == Rates() and no_incidents and not (self.receipts and self.receipts_fail)

    @property
    def commits_topic_id(self) -> bool:
        """Whether each commit always says which id of its topic it belongs to."""
        return self.metadata_limit >= MAX_IDS and not self.rates.foreign_metadata

    @property
    def short_maps(self) -> bool:
        """Whether an offset map may be incomplete because it is too long."""
        return self.policy.map_bytes < METADATA_BYTES or self.metadata_limit < METADATA_BYTES

    @property
    def undisturbed(self) -> bool:
        """One process that keeps its partitions, and no trouble: every figure is known beforehand."""
        one_topic_id = self.members == 1 and not self.rebalances and not self.restarts and not self.guarded
        return self.graceful and one_topic_id


def draw(seed: int, **overrides: Any) -> Knobs:
    """The knobs of a seed; `overrides` replace fields of `Knobs` (`policy` and `rates`: as whole values)."""
    random = Random(f"knobs {seed}")
    graceful = random.random() < 0.125
    arrival = random.uniform(3, 25)
    members = random.choice((1, 1, 2, 2, 3))
    knobs = Knobs(
        seed=seed,
        policy=_policy(random),
        rates=Rates(api_whole_batch=random.choice((0.0, 0.5))) if graceful else _rates(random),
        incidents=Incidents() if graceful else _incidents(random),
        rebalances=random.choice((0, 1, 2, 4)),
        restarts=random.choice((0, 0, 1, 2)),
        eager=random.random() < 0.4,
        members=members,
        partitions=random.randint(1, 4),
        accounts=random.randint(1, 3),
        records=random.randint(30, 160),
        arrival=arrival,
        quiet_at=arrival + random.uniform(2, 15),
        duplicates=random.choice((0.0, 0.1, 0.3)),
        bad=random.choice((0.0, 0.05, 0.2)),
        odd=random.choice((0.0, 0.1, 0.3)),
        late_schemas=random.choice((0.0, 0.0, 0.2)),
        clocks=(),
        registry_lag=0.0,
        window=random.choice((5.0, 3600.0, 1e6)) if not graceful else 1e6,
        # A graceful world needs time to drain in: one second of backoff must not be a release by deadline.
        grace=random.uniform(1, 6) if not graceful else 60.0,
        latency=random.choice((0.01, 0.1, 0.5)),
        body_limit=random.choice((1500, 4500)),
        proxy_limit=random.choice((100_000, 100_000, 100_000, 700)) if not graceful else 100_000,
        metadata_limit=random.choice((4096, 4096, 4096, MAX_IDS + 4, 0)) if not graceful else 4096,
        own_stores=random.random() < 0.5,
        shared=False,
        store_faults=StoreFaults(),
        notes=Random(f"notes {seed}").random() < 0.5,
        divided=False,
        # Worlds that a test asks for have none, unless it asks for it.
        function=overrides.keys() <= {"reading"} and Random(f"function {seed}").random() < FUNCTION,
        receipts=overrides.keys() <= {"reading"} and Random(f"receipts {seed}").random() < RECEIPTS,
        receipts_fail=0.0 if graceful else Random(f"failing receipts {seed}").choice((0.0, 0.03, 0.1, 0.3)),
        guarded=random.random() < 0.15,
        reading="fake",
    )
    if knobs.guarded:
        knobs = replace(knobs, odd=0.3)
    if not overrides.keys() & {"own_stores", "members"}:
        # From a generator of its own: the other worlds are what they were.
        knobs = replace(knobs, shared=Random(f"shared {seed}").random() < SHARED)
    knobs = replace(knobs, divided=not knobs.shared and Random(f"divided {seed}").random() < DIVIDED)
    knobs = replace(knobs, **overrides)
    if knobs.divided:
        # So that the part of one member is enough for all records, within the world's patience.
        calls = max(60, knobs.policy.calls_per_minute)
        knobs = replace(knobs, policy=replace(knobs.policy, calls_per_minute=calls, quota_members=1))
    if knobs.shared:
        knobs = _share(knobs, Random(f"shared store {seed}"), **overrides)
    if knobs.incidents.recreated and not knobs.commits_topic_id:
        knobs = replace(knobs, incidents=replace(knobs.incidents, recreated=0))
    if knobs.graceful:
        knobs = replace(knobs, metadata_limit=4096)
    maximum = METADATA_BYTES if knobs.graceful else knobs.policy.map_bytes
    transform = "shop.events:clean" if knobs.function else ""
    policy = replace(
        knobs.policy,
        accounts=knobs.accounts,
        map_bytes=maximum,
        transform=transform,
        receipts=knobs.receipts,
    )
    if not knobs.clocks:
        knobs = replace(knobs, clocks=tuple(random.choice(CLOCKS) for _ in range(knobs.members)))
    if not knobs.registry_lag:
        # Never for so long that "no such schema" becomes final.
        lag = random.choice((0.0, random.uniform(0, 0.8))) * policy.schema_patience
        knobs = replace(knobs, registry_lag=lag)
    if knobs.guarded:
        policy = replace(policy, dead_letter_share=GUARD_SHARE, dead_letter_sample=GUARD_SAMPLE)
    return replace(knobs, policy=policy)


def _share(knobs: Knobs, random: Random, **overrides: Any) -> Knobs:
    """The same world with a shared key store: several members, and copies of events in different partitions."""
    faults = {field.name: random.choice((1, 2, 3)) for field in fields(StoreFaults) if random.random() < 0.3}
    drawn: dict[str, Any] = {
        "members": random.choice((2, 2, 3)),
        "partitions": random.randint(2, 4),
        "duplicates": random.choice((0.1, 0.3, 0.5)),
        "latency": random.choice((0.01, 0.1)),
        "own_stores": False,
        "store_faults": StoreFaults() if knobs.graceful else StoreFaults(**faults),
    }
    knobs = replace(knobs, **drawn | {name: overrides[name] for name in drawn.keys() & overrides.keys()})
    # A call takes less than its time limit however slow all is, so that none is given up while it is under way.
    timeout = 50 * knobs.latency
    policy = replace(knobs.policy, call_timeout=timeout, lease=max(4.0, 2 * timeout))
    rates = replace(knobs.rates, store_forgets=0.0)
    return replace(knobs, policy=policy, rates=rates, clocks=())


def _policy(random: Random) -> Policy:
    return Policy(
        batch_events=random.choice((1, 3, 7, 20)),
        batch_bytes=random.choice((400, 1200, 100_000)),
        linger=random.choice((0.01, 0.1, 0.5)),
        concurrency=random.randint(1, 4),
        calls_per_minute=random.choice((20, 60, 5000, 5000)),
        max_open_events=random.choice((3, 15, 60, 500)),
        max_open_bytes=random.choice((1500, 6000, 1_000_000)),
        commit_interval=random.choice((0.1, 0.5, 2.0)),
        halt_patience=random.choice((0.0, 0.0, 0.0, 8.0)),
        throttle_cap=random.choice((3.0, 10.0)),
        unreachable_after=UNREACHABLE_AFTER,
        delivery_backoff=Backoff(random.choice((0.1, 0.5)), random.choice((1.0, 5.0))),
        inner_backoff=Backoff(0.1, random.choice((1.0, 3.0))),
        probe_backoff=Backoff(random.choice((0.2, 1.0)), 5.0),
        schema_patience=random.choice((3.0, 30.0)),
        registry_concurrency=random.choice((1, 8)),
        registry_calls_per_second=random.choice((2.0, 20.0)),
        away=AWAY,
        # Few records make short maps: full ones need little room.
        map_bytes=random.choice((4096, 4096, MAX_IDS + 12, MAX_IDS + 32)),
        destination=DESTINATION,
    )


def _rates(random: Random) -> Rates:
    drawn = {field.name: random.choice((0.03, 0.1, 0.3)) for field in fields(Rates) if random.random() < 0.4}
    # These two are not troubles but manners, and may be the rule.
    drawn["api_whole_batch"] = random.choice((0.0, 0.5, 1.0))
    drawn["slow"] = random.choice((0.0, 0.02, 0.1))
    return Rates(**drawn)


def _incidents(random: Random) -> Incidents:
    return Incidents(
        **{field.name: random.choice((1, 2, 3)) for field in fields(Incidents) if random.random() < 0.4}
    )
