"""`check` names what other members send by other settings: by what the group committed, and by a shared key store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.shared.address import parse_address
from consumer.adapters.key_store.shared.store import RedisKeyStore
from consumer.app import building
from consumer.commands.check import kafka as brokers
from consumer.commands.check import local
from consumer.commands.check.rows import Severity
from consumer.engine.model import Announcement, TopicPartition
from consumer.engine.records import offset_map
from consumer.settings import load
from tests.commands.check.asking import asked, the_text
from tests.end_to_end.api import Api
from tests.end_to_end.processes import run_environment
from tests.end_to_end.records import new_group, new_topic
from tests.support.kafka.harness import Kafka, commit, produce
from tests.support.redis_server import RedisServer


def test_who_read_last_by_other_settings(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """A partition that was read last by a member with another mapping is a warning that names the setting."""
    topic, group = new_topic(kafka), new_group()
    produce(kafka, topic, [b"1"])
    env = run_environment(tmp_path, kafka, topic, group, api.url)
    settings = load(env)
    ours = building.fingerprint_of(settings, building.sections(settings))
    for sender, reported in ((ours, False), ("AAAA" + ours[4:], True)):
        metadata = offset_map.write_map(TopicPartition(topic, 0), 1, [], None, fingerprint=sender)
        commit(kafka, group, topic, 1, metadata=metadata)
        rows = asked(env, local.schema, brokers.cluster, brokers.group)
        assert (Severity.WARNING in {row.verdict for row in rows}) is reported
    assert the_text(rows, Severity.WARNING).startswith(
        f"{topic}[0]: last read by a member with another mapping (PINSTREAM_MAPPING_FILE"
    )


def test_who_shares_the_key_store_for_another_url(
    kafka: Kafka, api: Api, redis: RedisServer, tmp_path: Path
) -> None:
    """Who sends the same account's events to another URL is a warning; one with these settings is none."""
    url = f"{redis.url}?prefix={uuid4().hex}"
    env = run_environment(tmp_path, kafka, new_topic(kafka), new_group(), api.url, PINSTREAM_KEY_STORE=url)
    settings = load(env)
    ours = building.announcement_of(settings, building.sections(settings))

    async def checked_beside(said: Announcement) -> list[str]:
        """Return what is said of members while one announces this; it takes that back when it leaves."""
        other = RedisKeyStore(parse_address(url), Window.of(172_800.0), lease=30.0, announcement=said)
        await other.renew()
        rows = await asyncio.to_thread(asked, env, local.schema, local.key_store)
        await other.close()
        return [row.text for row in rows if "member" in row.text]

    assert asyncio.run(checked_beside(ours)) == []
    [text] = asyncio.run(checked_beside(ours._replace(group="other", destination="AAAAAAAA")))
    assert text.startswith("a member that shares it has another PINTEREST_API_URL for the same ad account")
