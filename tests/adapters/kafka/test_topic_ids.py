"""Topic ids: queried before a start and while a topic is read, on a fake and on brokers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from confluent_kafka import ConsumerGroupState, KafkaError, KafkaException, Uuid

from consumer.adapters.kafka.groups import GroupWatch
from consumer.adapters.kafka.topic_ids import TopicIdWatch, id_text
from tests.adapters.kafka.member.scripted_member import Clock, FakeAdmin
from tests.support.kafka.harness import Kafka, create_topic, unique, until

ONE, OTHER = Uuid(1, 2), Uuid(-3, 4)


def made() -> tuple[FakeAdmin, TopicIdWatch]:
    """Return a client, and the topic ids that query it."""
    admin = FakeAdmin()
    return admin, TopicIdWatch({"bootstrap.servers": "x"}, make_admin=lambda _: admin)


def test_an_id_is_written_as_kafka_writes_it() -> None:
    """An id is written as base64url of 16 bytes without padding; one of zeros means that the broker knows none."""
    assert id_text(Uuid(1, 2)) == "AAAAAAAAAAEAAAAAAAAAAg"
    assert id_text(Uuid(-1, -1)) == "_____________________w"
    assert id_text(Uuid(0, 0)) is None


def test_a_query_returns_the_topics_that_have_an_id() -> None:
    """An error that may pass is raised: it does not mean that there is no id."""
    admin, ids = made()
    admin.ids = {"a": ONE, "b": Uuid(0, 0)}
    assert ids.ask({"a", "b", "gone"}, 1.0) == {"a": id_text(ONE)}
    admin.ids = {"a": KafkaException(KafkaError(KafkaError._TRANSPORT))}
    with pytest.raises(KafkaException):
        ids.ask({"a"}, 1.0)
    ids.close()


def test_a_cluster_that_has_no_controller_for_a_moment_reports_later(clock: Clock) -> None:
    """Without a controller a start gets no ids and looks query rarely, hurried or not, until an answer comes."""
    admin, ids = made()
    admin.controller, admin.ids = -1, {"a": ONE}
    assert ids.ask({"a"}, 1.0) == {}
    ids.expire_cache()
    assert ids.poll({"a"}) == {}
    assert admin.topics == []
    for wait in (30.0, 3.0):
        clock.now += wait
        assert ids.poll({"a"}) == {}
        assert ids.poll({"a"}) == {"a": id_text(ONE)}
    assert len(admin.topics) == 2


def test_a_client_that_does_not_answer_is_replaced(clock: Clock) -> None:
    """After twenty seconds without an answer: it may have lost its brokers for good."""
    admins: list[FakeAdmin] = []

    def make(_: object) -> FakeAdmin:
        admins.append(FakeAdmin())
        admins[-1].ids = {"a": KafkaException(KafkaError(KafkaError._TIMED_OUT))}
        return admins[-1]

    ids = TopicIdWatch({}, make_admin=make)
    for _ in range(2):
        with pytest.raises(KafkaException):
            ids.ask({"a"}, 1.0)
        clock.now += 10.0
    for _ in range(2):
        assert ids.poll({"a"}) == {}
        clock.now += 1.0
    assert len(admins) == 1
    with pytest.raises(KafkaException):
        ids.ask({"a"}, 1.0)
    assert len(admins) == 2
    admins[1].ids = {"a": ONE}
    assert ids.ask({"a"}, 1.0) == {"a": id_text(ONE)}
    ids.close()


def test_many_topics_are_checked_less_often(clock: Clock) -> None:
    """An answer describes each partition, and may take a hundredth of the time."""
    admin, ids = made()
    for count, seconds in ((1, 3.0), (2000, 20.0)):
        names = {f"topic-{number}" for number in range(count)}
        admin.ids = dict.fromkeys(names, ONE)
        ids.ask(names, 1.0)
        ids.poll(names)
        assert len(ids.poll(names)) == count
        admin.topics.clear()
        clock.now += seconds - 0.1
        ids.poll(names)
        assert admin.topics == []
        clock.now += 0.1
        ids.poll(names)
        assert len(admin.topics) == 1
        clock.now += 100.0


def test_a_check_never_waits() -> None:
    """One question at a time, whose answer a later look returns; none from before a start counts."""
    admin, ids = made()
    admin.ids = {"a": ONE}
    ids.ask({"a"}, 1.0)
    admin.at_once = False
    for _ in range(3):
        assert ids.poll({"a"}) == {}
    assert len(admin.topics) == 2
    admin.answer_topics()
    assert ids.poll({"a"}) == {"a": id_text(ONE)}
    assert ids.poll({"a"}) == {}
    assert len(admin.topics) == 2
    for reported in (ONE, KafkaException(KafkaError(KafkaError._TRANSPORT))):
        admin, ids = made()
        admin.ids = {"a": ONE}
        ids.ask({"a"}, 1.0)
        admin.ids = {"a": reported}
        assert ids.poll({"a"}) == {}
        if reported is ONE:
            admin.ids = {"a": OTHER}
            assert ids.ask({"a"}, 1.0) == {"a": id_text(OTHER)}
        assert ids.poll({"a"}) == {}


async def test_real_topics_have_ids_and_the_embedded_ones_none(each_kafka: Kafka) -> None:
    """Real topics keep their ids, embedded ones have none, and a query for a missing topic does not create it."""
    name, missing = create_topic(each_kafka), unique("missing")
    ids = TopicIdWatch(each_kafka.config)
    if each_kafka.kind == "embedded":
        assert ids.ask({name}, 10.0) == {}
    else:
        reported = ids.ask({name, missing}, 10.0)
        assert set(reported) == {name}
        polled: list[dict[str, str]] = []

        def poll() -> bool:
            found = ids.poll({name})
            if found:
                polled.append(dict(found))
            return bool(polled)

        await until(poll, "the id")
        assert polled == [reported]
        assert set(ids.ask({missing}, 10.0)) == set()
    ids.close()


def test_the_questions_of_a_client_that_is_gone_are_asked_again(clock: Clock) -> None:
    """Ids and group share it: where one gives it up, the other asks the next client."""
    admins: list[FakeAdmin] = []

    def make(_: object) -> FakeAdmin:
        admins.append(FakeAdmin())
        admins[-1].ids = {"a": ONE}
        return admins[-1]

    ids = TopicIdWatch({}, make_admin=make)
    size = GroupWatch("g", ids.client, lambda *_: None)
    assert ids.ask({"a"}, 1.0) == {"a": id_text(ONE)}
    admins[0].at_once = False
    clock.now += 3.0
    assert (ids.poll({"a"}), size.poll()) == ({}, None)
    ids.client.give_up()
    clock.now += 10.0
    for _ in range(2):
        assert (ids.poll({"a"}), size.poll()) == ({}, None)
    assert len(admins) == 2
    assert [len(one.asked) for one in admins] == [1, 1]
    assert ids.poll({"a"}) == {"a": id_text(ONE)}
    admins[1].asked[0].set_result(SimpleNamespace(members=[], state=ConsumerGroupState.STABLE, type=None))
    assert size.poll() == 0
    ids.close()
