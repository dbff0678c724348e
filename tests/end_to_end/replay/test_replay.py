"""``pinstream replay``: exactly the requested part of a topic goes through the pipeline, once."""

from __future__ import annotations

import signal
import time

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, last_error
from tests.end_to_end.records import ENCODER, commerce_event, committed_offsets
from tests.end_to_end.replay.replaying import NewReplayShop, ReplayShop
from tests.support.kafka.harness import WITHIN, Kafka, ask, committed
from tests.support.switches import switched

pytestmark = pytest.mark.real_kafka  # commits from outside a group, transactions, and topics of one partition

HOUR = 3_600_000


def ids(first: int, end: int) -> set[str]:
    """The event ids of orders."""
    return {f"order-{number}" for number in range(first, end)}


def test_the_end_is_fixed_when_it_starts(shop: ReplayShop) -> None:
    """Records that come while it runs are not replayed; the same holds for a named replay that is resumed later."""
    shop.place_orders(40)
    first = shop.replayed("--name", "once", "--limit", "10")
    assert (first.document["result"], first.ledger["read"]) == ("limited", 10)
    shop.place_orders(5, "later")
    second = shop.replayed("--name", "once")
    assert second.ledger["read"] == 30
    assert set(shop.accepted()) == ids(0, 40)
    third = shop.replayed("--name", "once")
    assert (third.document["result"], third.ledger["read"]) == ("complete", 0)
    assert [one.document["resumed"] for one in (first, second, third)] == [False, True, True]
    assert "up to 30 of 40 records are left" in second.stderr
    assert "is done: nothing is left; another --name starts again" in third.stderr


def test_what_was_delivered_is_not_sent_again(shop: ReplayShop) -> None:
    """The keys of the live window hold, in the same store, beside the running service; with ``--ignore-dedup`` they
    do not, and it says how many the platform sees twice: each again, though it stands twice in the topic."""
    shop.place_orders(30)
    shop.place_orders(10)  # the first ten again
    with shop.run() as service:
        service.until_settled(40)
        service.until(lambda: shop.committed == 40, "its commit")
        replayed = shop.replayed()
        assert replayed.figures() == (0, 40, 0, 0)
        assert replayed.document["sent_again"] is None
        assert set(shop.accepted().values()) == {1}

        again = shop.replayed("--ignore-dedup")
        assert again.figures() == (30, 10, 0, 0)
        assert again.document["sent_again"] == 30
        [warned] = [line for line in again.warnings if line.startswith("--ignore-dedup")]
        assert "counts as offline, and the platform does not drop doubles of that" in warned
        assert shop.accepted() == dict.fromkeys(ids(0, 30), 2)
        assert service.status()["ledger"]["read"] == 40
        assert shop.committed == 40
    last = shop.replayed()
    assert last.figures() == (0, 40, 0, 0)


def test_a_dry_run_sends_nothing_and_says_what_would_be(shop: ReplayShop) -> None:
    """It decodes, converts and looks keys up; needs no token; stores no key, letter or offset; lists ten problems."""
    shop.place_orders(20)
    shop.replayed(stop="offset:5")
    calls = shop.api.calls
    old = commerce_event("old", occurred_at=_now() - 10 * 24 * HOUR)
    bad = [commerce_event(f"bad-{n}", customer={}) for n in range(12)]
    shop.place(
        [commerce_event("order-7"), old, b"junk", None, commerce_event("x", event_type="nonsense"), *bad]
    )
    env = {name: value for name, value in shop.env.items() if name != "PINTEREST_ACCESS_TOKEN"}
    shop.env = env
    dry = shop.replayed("--dry-run")
    assert dry.figures() == (15, 6, 2, 14)
    assert dry.document["expired"] == 1
    assert dry.document["filtered"] == {"expired": 1, "tombstone": 1}
    problems = dry.document["problems"]
    assert [one["offset"] for one in problems] == [22, 24, *range(25, 33)]
    assert [one["code"] for one in problems[:3]] == [
        "unknown_wire_format",
        "unknown_event_name",
        "no_identity",
    ]
    assert all(one["message"] and one["topic"] == shop.topic for one in problems)
    assert "example.com" not in dry.stderr
    assert shop.api.calls == calls
    assert shop.letters == []
    assert shop.replayed("--dry-run").figures() == dry.figures()


def _now() -> int:
    return int(time.time() * 1000)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_named_replay_goes_on_where_it_was_interrupted(
    new_shop: NewReplayShop, how: signal.Signals
) -> None:
    """When stopped it settles what is in flight and says how to resume; after a kill no more is sent twice than
    was in flight. The next run reads only what is left."""
    settings = {
        "PINSTREAM_BATCH_EVENTS": "20",
        "PINSTREAM_CONCURRENCY": "2",
        **switched(commit_interval=0.05),
    }
    shop = new_shop(partitions=3, **settings)
    shop.place_orders(900)
    arguments = shop.line("--name", "n")
    with Process(shop.folder, *arguments, "--rate", "300/s", env=shop.env) as process:
        process.until(lambda: sum(shop.accepted().values()) > 250, "a third")
        if how is signal.SIGKILL:
            process.kill()
        else:
            code, _ = process.stop(how)
            assert code == 1
            assert "goes on where it stopped" in last_error(process.stderr)
    done = sum(shop.accepted().values())
    assert done < 900
    rest = shop.replayed("--name", "n")
    assert set(shop.accepted()) == ids(0, 900)
    twice = sum(shop.accepted().values()) - 900
    if how is signal.SIGKILL:
        assert twice <= 40
        assert rest.ledger["read"] < 900
    else:
        assert twice == 0
        assert rest.ledger["read"] == 900 - done
        assert rest.ledger["duplicate"] == 0
    assert committed_offsets(shop.kafka, shop.group, shop.topic, 3) == [0, 0, 0]


def test_a_name_belongs_to_one_replay(shop: ReplayShop) -> None:
    """With other arguments, or while another one runs, it is refused in one line; nothing is read."""
    shop.place_orders(50)
    shop.replayed("--name", "n", "--limit", "5")
    other = shop.replayed("--name", "n", start="offset:7", code=2)
    assert "n" in other.error
    assert "other arguments" in other.error
    arguments = shop.line("--name", "n")
    with Process(shop.folder, *arguments, "--rate", "2/s", env=shop.env) as process:
        process.until(lambda: len(shop.accepted()) > 5, "its first call")
        assert "is running" in shop.replayed("--name", "n", code=2).error
        assert process.stop(signal.SIGINT)[0] == 1
    assert len(shop.accepted()) < 50


def test_it_warns_of_what_could_be_sent_twice(shop: ReplayShop) -> None:
    """It warns about records that the live group has not settled, and about those older than the window: their
    number, a line each."""
    old = _now() - 72 * HOUR
    shop.place(
        (commerce_event(f"order-{n}") for n in range(20)),
        timestamps=[old if n < 8 else _now() for n in range(20)],
    )
    with shop.run() as service:
        service.until_settled(20)
    shop.place_orders(5, "later")
    warned = shop.replayed("--dry-run").warnings
    assert len(warned) == 2
    assert "up to 8 of these records are older than PINSTREAM_DEDUP_WINDOW" in warned[0]
    assert "each is a second conversion" in warned[0]
    assert "has not settled up to 5 of these records" in warned[1]
    assert shop.replayed("--dry-run", start="offset:10", stop="offset:20").warnings == []
    other = {"PINSTREAM_STATE_DIR": str(shop.folder / "elsewhere")}
    [unknown] = shop.replayed("--dry-run", start="offset:10", stop="offset:20", code=0, **other).warnings
    assert "there is no key store here" in unknown
    assert "settled up to 10 of these records" in unknown
    assert "each is a second conversion" in unknown
    assert not (shop.folder / "elsewhere").exists()


def test_it_warns_of_another_replay_and_of_an_open_transaction(shop: ReplayShop) -> None:
    """It warns about another replay that sends at the same time, and about records that no reader can read yet."""
    shop.place_orders(30)
    arguments = shop.line("--rate", "2/s")
    with Process(shop.folder, *arguments, env=shop.env) as other:
        other.until(lambda: shop.api.calls > 0, "its first call")
        [warning] = shop.replayed(start="offset:28", stop="offset:30").warnings
        assert "another replay is running" in warning
        other.kill()
    producer = Producer({**shop.kafka.config, "transactional.id": shop.topic, "log_level": 0})
    ask(lambda: producer.init_transactions(WITHIN))
    producer.begin_transaction()
    producer.produce(shop.topic, ENCODER.encode(commerce_event("not-yet")))
    assert producer.flush(WITHIN) == 0
    [warning] = shop.replayed("--dry-run").warnings
    assert "up to 1 records at the end" in warning
    producer.abort_transaction(WITHIN)


WRONG = [
    (("--from", "offset:99", "--to", "end"), "offset 99"),
    (("--from", "2026-01-02", "--to", "2026-01-01"), "after"),
    (("--from", "yesterday", "--to", "end"), "ISO 8601"),
    (("--from", "end", "--to", "end"), "nothing"),
    (("--from", "beginning", "--to", "end", "--partition", "7"), "partition 7"),
    (("--from", "beginning", "--to", "end", "--where", "event_name=chekout"), "checkout"),
    (("--from", "beginning", "--to", "end", "--max-age", "old"), "--max-age"),
]


@pytest.fixture(scope="module")
def small_topic(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> ReplayShop:
    """A topic of ten records that are never delivered."""
    nowhere = Api.__new__(Api)
    nowhere.url = "http://127.0.0.1:9/v5"
    shop = ReplayShop(kafka, nowhere, tmp_path_factory.mktemp("small"))
    shop.place_orders(10)
    return shop


@pytest.mark.parametrize(("arguments", "said"), WRONG, ids=[" ".join(one[0]) for one in WRONG])
def test_a_wrong_argument_is_one_clear_line(
    small_topic: ReplayShop, arguments: tuple[str, ...], said: str
) -> None:
    """Exit code 2, and the line names what was wrong; nothing is read."""
    done = command("replay", "--topic", small_topic.topic, *arguments, env=small_topic.env)
    assert done.returncode == 2
    assert done.stdout == ""
    line = last_error(done.stderr)
    assert said in line
    assert len(line) < 400


def test_the_groups_of_replays_are_their_own(shop: ReplayShop) -> None:
    """A replay without a name leaves no group; one with a name has a group of that name beside the live one."""

    shop.place_orders(5)
    admin = AdminClient({**shop.kafka.config, "log_level": 0})

    def groups() -> set[str]:
        # Other tests have groups on this broker, at the same time.
        listed = ask(lambda: admin.list_consumer_groups(request_timeout=WITHIN).result(WITHIN))
        return {one.group_id for one in listed.valid if shop.group in one.group_id}

    shop.replayed()
    assert groups() == set()
    shop.replayed("--name", "mine")
    assert groups() == {f"{shop.group}.replay.mine"}
    assert committed(shop.kafka, f"{shop.group}.replay.mine", shop.topic).offset == 5
