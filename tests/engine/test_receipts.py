"""Receipts: each outcome has one, acknowledged before its key is stored and before its record settles."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
import pytest

from consumer.engine import messages as m
from consumer.engine.model import Disposition, NotSelected, Position
from consumer.engine.reading import Kind
from consumer.engine.receipts import Call, Outcome, Receipts
from tests.engine.building import (
    ACCOUNT,
    TOPIC,
    UNDECODABLE,
    UNIX,
    Core,
    FakeConverter,
    accepted,
    answer_body,
    event,
    event_ids,
    filtered,
    released,
    sending,
    stopped,
    unconvertible,
)
from tests.engine.dedup.test_shared import sending_member

TOPIC_ID, NEXT_ID = "AAECAwQFBgcICQoLDA0ODw", "Dw4NDAsKCQgHBgUEAwIBAA"
REFUSED = ("failed", "no such currency", None)
PROCESSED = ("processed", None, None)
DELIVERED, DUPLICATE = Disposition.DELIVERED, Disposition.DUPLICATE
FILTERED, DEAD_LETTERED = Disposition.FILTERED, Disposition.DEAD_LETTERED


def receiving(*values: bytes | None, partition: int = 0, **policy: object) -> Core:
    """A core that wants receipts, with these records read and their calls begun."""
    return sending(*values, receipts=True, **policy)


def store(core: Core, stored: bool = True, reason: str = "") -> list[Receipts]:
    """Let the broker store the receipts of the oldest write, or none of them. Return them."""
    asked = core.take(m.StoreReceipts)
    core.feed(m.ReceiptsStored(asked.number, [stored] * len(asked.receipts), reason))
    return list(asked.receipts)


def store_all(core: Core) -> dict[int, Outcome]:
    """Let the broker store receipts as long as any are written. Return the outcome of each offset."""
    found: dict[int, Outcome] = {}
    while core.has(m.StoreReceipts):
        found |= {record.offset: one.outcome for one in store(core) for record in one.records}
    return found


def dispositions(receipts: Sequence[Receipts]) -> list[Disposition]:
    return [one.outcome.disposition for one in receipts for _ in one.records]


def test_nothing_is_written_where_no_receipts_are_wanted() -> None:
    """Without the setting there is no such command, whatever becomes of the records."""
    core = sending(event("a"), event("a"), filtered(), unconvertible())
    core.deliver()
    core.store_letters()
    assert core.statistics().totals.open == 0
    assert not [one for one in core.log if isinstance(one, m.StoreReceipts)]


def test_a_key_is_stored_after_its_receipt() -> None:
    """Outcome, receipt, key, settled: each only once the one before is acknowledged; then its follower likewise."""
    core = receiving(event("a", cents=5), event("a"))
    rid = {"x-pinterest-rid": "1234567890123"}
    core.answer(core.take(m.Send), 200, accepted(1), rid)
    assert not core.has(m.StoreKeys)
    [receipt] = store(core)
    at_ms = int(UNIX * 1000)
    outcome = Outcome(DELIVERED, at_ms, None, 1, Call(rid["x-pinterest-rid"], 200, at_ms))
    assert receipt.outcome == outcome
    assert (receipt.topic, receipt.partition, receipt.topic_id) == (TOPIC, 0, None)
    assert [record.offset for record in receipt.records] == [0]
    [body] = receipt.bodies
    assert orjson.loads(body)["event_id"] == "a"
    assert [kind and kind.account for kind in receipt.kinds] == [ACCOUNT]
    assert [*receipt.times] == [int(UNIX) - 10]
    assert core.statistics().totals.delivered == 0
    core.store_keys()
    assert core.statistics().totals.delivered == 1
    assert core.statistics().totals.duplicate == 0
    assert dispositions(store(core)) == [DUPLICATE]
    assert core.statistics().totals.duplicate == 1
    assert core.statistics().totals.open == 0


def test_every_outcome_has_a_receipt() -> None:
    """Delivered, refused, filtered, unconvertible, undecodable, a tombstone, and delivered before: with its reason, its
    attempts and its call; what is no event has no body, kind and time."""
    core = Core(receipts=True, linger=0.1)
    core.assign(0)
    core.fetch(event("a"))
    core.send_all()
    core.accept()
    store_all(core)
    core.store_keys()
    core.fetch(event("b"), event("bad"), filtered(), unconvertible(), UNDECODABLE, None, event("a"))
    assert core.committable() == 1
    found = store_all(core)
    assert {offset: (one.disposition, one.code) for offset, one in found.items()} == {
        3: (FILTERED, "event_name"), 6: (FILTERED, "tombstone"),
    }  # fmt: skip
    core.look_up()
    core.advance(0.1)
    send = core.take(m.Send)
    core.answer(send, 200, answer_body([PROCESSED, REFUSED]))
    letters = [core.store_letters(), *([core.store_letters()] if core.has(m.StoreDeadLetters) else [])]
    assert sum(map(len, letters)) == 3
    found |= store_all(core)
    core.store_keys()
    said = {offset: (one.disposition, one.code, one.attempts) for offset, one in found.items()}
    assert said == {
        1: (DELIVERED, None, 1), 2: (DEAD_LETTERED, "refused", 1), 3: (FILTERED, "event_name", 0),
        4: (DEAD_LETTERED, "no_identity", 0), 5: (DEAD_LETTERED, "malformed", 0), 6: (FILTERED, "tombstone", 0),
        7: (DUPLICATE, None, 0),
    }  # fmt: skip
    assert {offset for offset, one in found.items() if one.call is not None} == {1, 2}
    totals = core.statistics().totals
    assert (totals.delivered, totals.duplicate, totals.filtered, totals.dead_lettered) == (2, 1, 2, 3)
    assert core.committable() == 8
    assert dict(core.statistics().counters.filtered) == {"event_name": 1, "tombstone": 1}


def test_a_letter_comes_before_its_receipt_and_a_receipt_before_the_commit() -> None:
    """A redrive marks a letter done by committing its position: by then the receipt is stored."""
    core = Core(receipts=True, commit_interval=0.1)
    core.assign(0)
    core.fetch(unconvertible())
    assert not core.has(m.StoreReceipts)
    core.store_letters()
    core.advance(1.0)
    assert not core.has(m.Commit)
    assert core.statistics().letters == ()
    assert dispositions(store(core)) == [DEAD_LETTERED]
    core.advance(1.0)
    assert [one.next_offset for one in core.commit()] == [1]
    assert len(core.statistics().letters) == 1


def test_a_bisected_batch_has_the_call_of_each_event() -> None:
    """Each event's receipt names the call that decided about it, and counts its calls."""
    core = receiving(event("a"), event("bad"), batch_events=2)
    core.answer(core.take(m.Send), 400, b'{"code": 4196, "message": "bad"}', {"x-pinterest-rid": "1"})
    for rid in ("2", "3"):
        send = core.take(m.Send)
        status, body = (
            (400, b'{"code": 4196, "message": "bad"}') if event_ids(send) == ["bad"] else (200, accepted(1))
        )
        core.answer(send, status, body, {"x-pinterest-rid": rid})
    core.store_letters()
    found = store_all(core)
    calls = [
        (one.disposition, one.attempts, one.call and one.call.request_id) for _, one in sorted(found.items())
    ]
    assert calls == [(DELIVERED, 2, "2"), (DEAD_LETTERED, 2, "3")]


def test_sending_stops_while_no_receipt_is_acknowledged_and_goes_on_by_itself() -> None:
    """Delivered events without a receipt are at risk: at most concurrency x batch of them, and those in flight. Nothing
    settles, the figures name the cause, and it heals without a loss."""
    core = receiving(*(event(str(n)) for n in range(9)), batch_events=1, concurrency=2)
    core.accept()
    core.accept()
    for _ in range(20):
        assert not core.has(m.Send)
        store(core, False, "the topic receipts is gone: create it")
        core.until(lambda: core.has(m.StoreReceipts))
    figures = core.statistics()
    assert figures.receipts_error == "the topic receipts is gone: create it"
    assert figures.counters.failures["receipt"] == 20 + 19
    assert figures.totals.delivered == 0
    assert not core.has(m.StoreKeys)
    assert core.reports("receipts_not_stored")[-1].fields["reason"] == "the topic receipts is gone: create it"
    for _ in range(9):
        while core.has(m.StoreReceipts):
            store(core)
        core.store_keys()
        while core.has(m.Send):
            core.accept()
    figures = core.statistics()
    assert figures.receipts_error is None
    assert (figures.totals.delivered, figures.totals.open) == (9, 0)


def test_only_the_receipts_that_were_not_stored_are_written_again() -> None:
    """Of a write in which some failed, the others go on. Neighbours that are filtered for one reason go together."""
    core = Core(receipts=True)
    core.assign(0)
    core.fetch(filtered(), None, filtered(), filtered())
    asked = core.take(m.StoreReceipts)
    core.feed(m.ReceiptsStored(asked.number, [True, False, True], "full"))
    assert core.statistics().totals.filtered == 3
    core.until(lambda: core.has(m.StoreReceipts))
    [again] = store(core)
    assert [one.offset for one in again.records] == [1]
    assert core.statistics().totals.open == 0


def test_a_write_has_no_more_receipts_than_a_crash_may_repeat() -> None:
    """Also of neighbours that are filtered or were delivered before, of which a run may be as long as a fetch."""
    core = Core(receipts=True, concurrency=2, batch_events=1)
    core.assign(0)
    core.fetch(*[filtered()] * 5)
    sizes = []
    while core.has(m.StoreReceipts):
        sizes.append(len(dispositions(store(core))))
    assert sizes == [2, 2, 1]
    assert core.statistics().totals.filtered == 5


@pytest.mark.parametrize("values", [(filtered(),), (unconvertible(),), (event("a"),)])
def test_a_revoke_waits_for_receipts(values: tuple[bytes, ...]) -> None:
    """A revoke waits for the receipt of an outcome, and commits past its record then."""
    core = receiving(*values)
    if core.has(m.Send):
        core.accept()
    if core.has(m.StoreDeadLetters):
        core.store_letters()
    assert released(core.revoke(0)) is None
    store(core)
    core.store_keys()
    assert released(core.log) == [Position(TOPIC, 0, 1, 7)]


def test_at_the_deadline_of_a_revoke_only_receipts_of_delivered_events_stay() -> None:
    """The next owner reads the records again: it finds the key of a delivered event, which its receipt comes before. It
    decides about the others itself."""
    core = receiving(event("a"), filtered(), filtered())
    core.accept()
    asked = core.take(m.StoreReceipts)
    core.revoke(0, grace=5.0)
    core.advance(6.0)
    assert released(core.log) == []
    core.feed(m.ReceiptsStored(asked.number, [False] * len(asked.receipts), "away"))
    assert core.statistics().receipts_error == "away"
    core.until(lambda: core.has(m.StoreReceipts))
    assert dispositions(store(core)) == [DELIVERED]
    core.store_keys()
    assert core.stored_keys
    figures = core.statistics()
    assert (figures.totals.delivered, figures.counters.delivered_after_release) == (0, 1)
    assert (len(core.pipeline.receipts), core.pipeline.steps.at_risk) == (0, 0)


def test_a_member_that_has_lost_its_partitions_has_no_outage_to_show() -> None:
    """What failed was dropped: the next owner writes it."""
    core = Core(receipts=True)
    core.assign(0)
    core.fetch(filtered())
    store(core, False, "away")
    assert core.statistics().receipts_error == "away"
    core.lose(0)
    assert core.statistics().receipts_error is None


def test_a_stop_ends_at_its_deadline_though_the_receipts_topic_is_away() -> None:
    """It commits what is settled, and nothing beyond."""
    core = receiving(filtered(), event("a"), filtered())
    store(core)
    core.accept()
    core.feed(m.StopRequested(5.0))
    core.until(lambda: stopped(core) is not None)
    stop = stopped(core)
    assert stop is not None
    assert not stop.drained
    assert [one.next_offset for one in stop.positions] == [1]


def test_a_full_block_that_was_cut_keeps_the_record_of_an_event_in_a_call() -> None:
    """Finished blocks are packed; one with an event that is still in a call keeps what its receipt needs."""
    core = Core(receipts=True, batch_events=1, concurrency=40)
    core.assign(0)
    core.fetch(event("first"))
    core.fetch(filtered(), event("a"))
    core.look_up()
    held, send = core.take(m.Send), core.take(m.Send)
    store_all(core)
    core.offsets[0] = 2
    for _ in range(40):
        core.fetch(filtered())
        store_all(core)
    core.accept(send)
    [receipt] = store(core)
    assert receipt.records[0].offset == 2
    assert orjson.loads(receipt.bodies[0])["event_id"] == "a"
    core.accept(held)


def test_a_recreated_topic_has_its_own_id_in_receipts() -> None:
    """An event of the deleted topic has a receipt under that topic's id; what is read again, under the other."""
    core = Core(receipts=True)
    core.assign(0, topic_id=TOPIC_ID)
    core.fetch(event("a"))
    core.look_up()
    core.feed(m.TopicIds({TOPIC: NEXT_ID}))
    core.accept()
    assert [one.topic_id for one in store(core)] == [TOPIC_ID]
    core.store_keys()
    core.assign(0, epoch=2, topic_id=NEXT_ID)
    core.offsets[0] = 0
    core.fetch(event("a"))
    core.look_up()
    [receipt] = store(core)
    assert (receipt.topic_id, receipt.outcome.disposition) == (NEXT_ID, DUPLICATE)


def test_a_tripped_guard_leaves_receipts_of_stored_letters_alone() -> None:
    """A letter that is stored settles its record, with its receipt; a letter that was not written has none."""
    core = Core(receipts=True, dead_letter_share=0.5, dead_letter_sample=4)
    core.assign(0)
    core.fetch(unconvertible())
    core.store_letters()
    core.fetch(*[unconvertible()] * 5)
    assert core.statistics().guard is not None
    assert dispositions(store(core)) == [DEAD_LETTERED]
    assert not core.has(m.StoreReceipts)
    assert core.statistics().totals.dead_lettered == 1
    assert released(core.revoke(0)) == [Position(TOPIC, 0, 1, 7)]


def test_an_event_that_another_member_took_over_has_its_receipt_once() -> None:
    """Its key is tried again, and its receipt is not written again."""
    core = sending_member(event("a"), receipts=True)
    core.accept()
    store(core)
    for stored in (m.Stored.TAKEN_OVER, m.Stored.DELIVERED_TWICE):
        core.until(lambda: core.has(m.StoreKeys))
        core.feed(m.KeysStored(core.take(m.StoreKeys).number, [stored]))
        assert not core.has(m.StoreReceipts)
    assert core.statistics().totals.delivered == 1


def test_filtered_records_without_a_receipt_do_not_use_up_a_limit() -> None:
    """A replay's limit does not count filtered records, also while their receipts are being written."""
    core = Core(receipts=True, max_records=2)
    core.assign(0)
    core.fetch(filtered(), filtered(), filtered())
    assert not core.pipeline.enough()
    store_all(core)
    assert not core.pipeline.enough()
    core.fetch(event("a"), event("b"))
    core.deliver()
    store_all(core)
    core.store_keys()
    assert core.pipeline.enough()


def test_what_a_replay_does_not_select_gets_no_receipt(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says nothing of the record; as filtered it would count more than a duplicate, and for a record never read."""
    monkeypatch.setattr(FakeConverter, "convert", lambda *_: NotSelected("where"))
    core = Core(receipts=True)
    core.assign(0)
    core.fetch(event("a"), event("b"))
    assert not core.has(m.StoreReceipts)
    assert core.statistics().totals.filtered == 2
    assert dict(core.statistics().counters.filtered) == {"where": 2}


def test_a_repr_holds_no_event() -> None:
    """A message may be logged: it shows neither records nor bodies."""
    core = receiving(event("somebody"))
    core.accept()
    asked = core.take(m.StoreReceipts)
    assert "somebody" not in repr(asked)
    assert Kind(ACCOUNT, "checkout", 0).account not in repr(asked)
