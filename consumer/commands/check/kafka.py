"""Questions to the brokers and the registry: topics, the start of the group, dead-letter topics, schemas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from uuid import UUID

from consumer.adapters.aws import glue, msk
from consumer.adapters.kafka.cluster import Extent, TopicSettings, describe, topic_settings
from consumer.adapters.kafka.configuration import dead_letter_topic, uses_consumer_protocol
from consumer.adapters.kafka.groups import GroupOffsets, try_to_join
from consumer.adapters.schemas_on_disk import KeptSchemas
from consumer.adapters.thread import run_blocking
from consumer.app import building
from consumer.commands.check.rights import missing, needed
from consumer.commands.check.rows import TIMEOUT, Found, Said, Skip, cluster_of, counted
from consumer.engine import offset_map
from consumer.engine.ledger import map_place
from consumer.engine.messages import FetchSchema, SchemaFound, SchemaUnavailable
from consumer.engine.model import Position, SchemaRef, TopicPartition, destination_tag
from consumer.errors import KafkaError, RegistryError, first_of


async def cluster(found: Found) -> Said:
    """Are the brokers there, and the topics, with a leader for each partition?"""
    kafka = found.settings.kafka
    found.cluster = view = await describe(
        kafka.client_properties(),
        kafka.topics,
        timeout=TIMEOUT,
        # A pattern does not mean the dead-letter topics that it matches.
        dead_letter_topic=found.settings.pinstream.dead_letter_topic,
    )
    # The service would wait for a leader; here it is an error, because the user can act on it now.
    if view.leaderless:
        without = first_of([str(one) for one in view.leaderless])
        raise KafkaError(f"partitions without a leader cannot be read now: {without}; check the brokers")
    config, wanted = kafka.client_properties(), needed(found.settings)
    if rights := await run_blocking("pinstream-kafka-rights", missing, config, wanted, view.known, TIMEOUT):
        # With IAM, MSK ignores Kafka's own ACLs.
        form = "iam" if kafka.uses_iam else "kafka-acls"
        raise KafkaError(
            f"Kafka: this user lacks {first_of(rights)}: grant it (`pinstream check --rights {form}` prints how)"
        )
    topics = [f"{name} ({counted(partitions, 'partition')})" for name, partitions in view.topics.items()]
    warnings = [
        f"KAFKA_TOPICS: no topic matches {pattern} yet; a topic that is created later is read from its beginning"
        for pattern in view.unmatched
    ]
    details = []
    if kafka.uses_iam:
        used = await run_blocking("pinstream-msk", msk.describe, config)
        details.append(f"logs in with {used}")
    return Said(
        f"{counted(len(view.brokers), 'broker')}; {first_of(topics) or 'no topic'}", warnings, details
    )


async def check_group(found: Found) -> Said:
    """Where does the group begin to read, and who is in it now?"""
    view = cluster_of(found)
    partitions = [TopicPartition(topic, one) for topic, most in view.topics.items() for one in range(most)]
    if not partitions:
        raise Skip("needs a topic")
    kafka = found.settings.kafka
    config = kafka.client_properties()
    async with GroupOffsets(config, kafka.group_id, TIMEOUT) as offsets:
        positions = await offsets.positions(partitions)
        members = await offsets.view()
        extents = await offsets.extents(partitions)
    # Not while it has members: one more would take partitions from them for a moment.
    if uses_consumer_protocol(config) and members.state in ("Empty", "Dead"):
        # A broker that has this protocol turned off says so only to somebody who joins.
        named = {**config, "group.id": kafka.group_id}
        await run_blocking("pinstream-kafka-join", try_to_join, named, list(view.topics), TIMEOUT)
    begin = _begin(kafka.group_id, kafka.auto_offset_reset, positions, extents)
    warnings = [*_astray(positions, extents), *_elsewhere(found, positions, extents)]
    if members.state == "Unknown":
        now = "these brokers do not list its members"
    else:
        now = f"{counted(len(members.members), 'member')} now" if members.members else "no member now"
    return Said(f"{kafka.group_id}: {begin}; {now}", warnings)


def _begin(
    group_id: str,
    reset: str,
    positions: Mapping[TopicPartition, Position],
    extents: Mapping[TopicPartition, Extent],
) -> str:
    new = [one for one in extents if one not in positions]
    # The service would end with this error when it is assigned such a partition.
    if new and reset == "error":
        raise KafkaError(
            f"the group {group_id} has no offset for {first_of([str(one) for one in new])}, and "
            "KAFKA_AUTO_OFFSET_RESET is error: set one with `pinstream offsets set`, or set earliest"
        )
    # These count offsets. Compaction and transactions leave gaps, so there may be fewer records.
    known = sum(
        max(0, extent.end - max(positions[one].next_offset, extent.low))
        for one, extent in extents.items()
        if one in positions
    )
    unread = sum(extents[one].end - extents[one].low for one in new)
    if not new:
        return f"goes on where it was, {counted(known, 'record')} behind"
    if len(new) < len(extents):
        return (
            f"goes on where it was, {counted(known, 'record')} behind, and begins "
            f"{counted(len(new), 'new partition')} at the beginning ({counted(unread, 'record')})"
        )
    # It has offsets of other topics: then it reads new topics from the beginning, even with `latest`.
    if positions:
        return f"new to these topics, begins at the beginning: {counted(unread, 'record')}"
    if reset == "latest":
        return f"new, begins at the end: {counted(unread, 'record')} will not be read"
    return f"new, begins at the beginning: {counted(unread, 'record')}"


def _astray(
    positions: Mapping[TopicPartition, Position], extents: Mapping[TopicPartition, Extent]
) -> Iterator[str]:
    """Warn of committed offsets outside of what the partition holds: the service goes by KAFKA_AUTO_OFFSET_RESET."""
    for name, extent in extents.items():
        position = positions.get(name)
        # Where nothing is committed, nothing can be wrong with it.
        if position is None:
            continue
        if position.next_offset < extent.low:
            yield (
                f"{name}: committed is {position.next_offset:,}, but it begins at {extent.low:,}: the records between "
                "were deleted unread; raise the topic's retention.ms"
            )
        elif position.next_offset > extent.end:
            yield (
                f"{name}: committed is {position.next_offset:,}, but it ends at {extent.end:,}: the topic was created "
                "again, or this is another cluster; see `pinstream offsets show`"
            )


def _elsewhere(
    found: Found, positions: Mapping[TopicPartition, Position], extents: Mapping[TopicPartition, Extent]
) -> Iterator[str]:
    """Warn if the group has committed what another destination got."""
    destination = destination_tag(found.settings.pinterest.api_url, found.settings.pinterest.test_mode)
    other = []
    for name, position in positions.items():
        read = offset_map.read_metadata(position.metadata, position.next_offset, where=map_place(name))
        # Commits of other programs, and of a pinstream before this was in them, name no destination.
        if name in extents and read is not None and read.destination not in (None, destination):
            other.append(str(name))
    if other:
        yield (
            f"{first_of(other)}: committed for another PINTEREST_API_URL or PINTEREST_TEST_MODE; earlier records are "
            "not sent to this one: give each its own KAFKA_GROUP_ID, or move the group with `pinstream offsets set`"
        )


async def check_dead_letters(found: Found) -> Said:
    """Can dead letters be stored, with their whole value?"""
    view, template = cluster_of(found), found.settings.pinstream.dead_letter_topic
    topics = {topic: dead_letter_topic(template, topic) for topic in view.topics}
    wanted = sorted(set(topics.values()))
    if not wanted:
        raise Skip("needs a topic")
    missing = [name for name in wanted if name not in view.known]
    there = [name for name in wanted if name in view.known]
    said = [f"there: {first_of(there)}"] if there else []
    if missing:
        said.append(f"created with the first dead letter, if this user is allowed to: {first_of(missing)}")
    asked = [*there, *(topic for topic, letters in topics.items() if letters in view.known)]
    known = await topic_settings(found.settings.kafka.client_properties(), asked, TIMEOUT)
    # Not every broker gives them, nor to every user.
    if unknown := [name for name in asked if name not in known]:
        said.append(f"the brokers do not return the settings of {first_of(unknown)} (grant DESCRIBE_CONFIGS)")
    return Said("; ".join(said), list(_unfit(topics, known)))


def _unfit(topics: Mapping[str, str], known: Mapping[str, TopicSettings]) -> Iterator[str]:
    """Warn of dead-letter topics whose settings lose letters. `topics`: topic -> its dead-letter topic."""
    for letters in sorted({one for one in topics.values() if one in known}):
        if known[letters].compacted:
            yield (
                f"{letters} is compacted: letters without a key cannot be stored, and of each key only the last is "
                "kept; set its cleanup.policy=delete"
            )
        # A letter is its record and some headers: it needs at least the limit of its topic.
        origins = [known[topic].largest for topic, own in topics.items() if own == letters and topic in known]
        needed = max(origins, default=0)
        if known[letters].largest < needed:
            yield (
                f"{letters} takes batches up to {known[letters].largest:,} bytes, the topic it serves {needed:,}: "
                "larger letters are stored without their value, which a redrive then has to find at its origin; set "
                f"its max.message.bytes={2 * needed}"
            )


async def registry(found: Found) -> Said:
    """Does the registry answer, or can the service begin without it?"""
    settings = found.settings.registry
    if not settings.url:
        raise Skip("SCHEMA_REGISTRY_URL is not set: writers' schemas come from PINSTREAM_SCHEMAS_DIR")
    source = building.writer_schemas(found.settings, building.local_schemas(found.settings))
    try:
        # Any verdict on any id shows that it answers. 1 is the first id that a registry assigns; Glue assigns UUIDs.
        some = SchemaRef("glue", str(UUID(int=0))) if settings.is_glue else SchemaRef("id", "1")
        answer = await source.fetch(FetchSchema(some))
        # Without a registry the source would be the folder; there is one, so this is for the type alone.
        kept = await source.kept() if isinstance(source, KeptSchemas) else 0
    finally:
        await source.close()
    # A schema that is on disk is found although the registry does not answer; then the answer says that, too.
    away = answer.unanswered if isinstance(answer, SchemaFound) else answer
    if not isinstance(away, SchemaUnavailable):
        # With which login AWS was asked: a profile or a role may be another one than the user thinks.
        used = [await run_blocking("pinstream-glue", glue.describe, settings.url)] if settings.is_glue else []
        return Said(f"answers; {counted(kept, 'schema')} on disk", details=used)
    # Wrong credentials do not heal by themselves. An address that has answered before was right.
    if not kept or away.refused:
        raise RegistryError(away.reason)
    warning = f"{away.reason}; until it answers, records of the schemas on disk are read, and all others wait"
    return Said(f"{counted(kept, 'schema')} on disk", [warning])
