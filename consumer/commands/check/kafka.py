"""Questions to the brokers: topics, the start of the group, dead-letter topics."""

from __future__ import annotations

from collections.abc import Sequence

from consumer.adapters.aws import msk
from consumer.adapters.kafka.cluster import describe_cluster, topic_settings
from consumer.adapters.kafka.configuration import dead_letter_topic, uses_consumer_protocol
from consumer.adapters.kafka.groups import GroupOffsets, try_to_join
from consumer.adapters.thread import run_blocking
from consumer.commands.check.rights import missing, needed
from consumer.commands.check.rows import TIMEOUT, CheckContext, Row, Skip, cluster_of, counted, ok, warning
from consumer.commands.standing import Standing, troubles
from consumer.engine import offset_map
from consumer.engine.model import TopicPartition, destination_tag
from consumer.errors import KafkaError, first_of


async def cluster(found: CheckContext) -> Sequence[Row]:
    """Are the brokers there, and the topics, with a leader for each partition?"""
    kafka = found.settings.kafka
    config = kafka.client_properties()
    found.cluster = view = await describe_cluster(
        config,
        kafka.topics,
        timeout=TIMEOUT,
        # A pattern does not mean the dead-letter topics that it matches.
        dead_letter_topic=found.settings.pinstream.dead_letter_topic,
        joins=True,
    )
    # The service would wait for a leader; here it is an error, because the user can act on it now.
    if view.leaderless:
        without = first_of([str(one) for one in view.leaderless])
        raise KafkaError(f"partitions without a leader cannot be read now: {without}; check the brokers")
    wanted = needed(found.settings)
    if rights := await run_blocking("pinstream-kafka-rights", missing, config, wanted, view.known, TIMEOUT):
        # With IAM, MSK ignores Kafka's own ACLs.
        form = "iam" if kafka.uses_iam else "kafka-acls"
        raise KafkaError(
            f"Kafka: this user lacks {first_of(rights)}: grant it (`pinstream check --rights {form}` prints how)"
        )
    topics = [f"{name} ({counted(partitions, 'partition')})" for name, partitions in view.topics.items()]
    unmatched = "KAFKA_TOPICS: no topic matches {} yet; one that is created later is read from its beginning"
    logins = [await run_blocking("pinstream-msk", msk.tokens_for, config)] if kafka.uses_iam else []
    return [
        ok(f"{counted(len(view.brokers), 'broker')}; {first_of(topics) or 'no topic'}"),
        *(ok(f"logs in with {msk.MECHANISM}: {login.used}") for login in logins),
        *(warning(unmatched.format(pattern)) for pattern in view.unmatched),
    ]


async def group(found: CheckContext) -> Sequence[Row]:
    """Where does the group begin to read, and who is in it now?"""
    view, kafka = cluster_of(found), found.settings.kafka
    partitions = [TopicPartition(topic, one) for topic, most in view.topics.items() for one in range(most)]
    if not partitions:
        raise Skip("needs a topic")
    config = kafka.client_properties()
    async with GroupOffsets(config, kafka.group_id, TIMEOUT) as offsets:
        positions = await offsets.positions(partitions)
        members = await offsets.view()
        extents = await offsets.extents(partitions)
    # Do not join while it has members: one more would take partitions from them for a moment.
    if uses_consumer_protocol(config) and members.state in ("Empty", "Dead"):
        # Only joining shows that a broker has this protocol turned off.
        named = {**config, "group.id": kafka.group_id}
        await run_blocking("pinstream-kafka-join", try_to_join, named, list(view.topics), TIMEOUT)
    rows = [Standing(name, positions.get(name), extent) for name, extent in extents.items()]
    begin = _begin(found, rows, is_new=not positions)
    if members.state == "Unknown":
        now = "these brokers do not list its members"
    else:
        now = f"{counted(len(members.members), 'member')} now" if members.members else "no member now"
    known = [row for row in rows if row.position is not None]
    warnings = [*troubles(known)]
    if other := [str(row.place) for row in known if _is_of_another_destination(found, row)]:
        warnings.append(
            f"{first_of(other)}: committed for another PINTEREST_API_URL or PINTEREST_TEST_MODE; earlier records are "
            "not sent to this one: give each its own KAFKA_GROUP_ID, or move the group with `pinstream offsets set`"
        )
    return [ok(f"{kafka.group_id}: {begin}; {now}"), *map(warning, warnings)]


def _begin(found: CheckContext, rows: Sequence[Standing], *, is_new: bool) -> str:
    """Return where the group begins to read. `is_new`: it has no offset of any topic."""
    kafka, new = found.settings.kafka, [row for row in rows if row.position is None]
    # The service would end with this error when it is assigned such a partition.
    if new and kafka.auto_offset_reset == "error":
        raise KafkaError(
            f"the group {kafka.group_id} has no offset for {first_of([str(row.place) for row in new])}, and "
            "KAFKA_AUTO_OFFSET_RESET is error: set one with `pinstream offsets set`, or set earliest"
        )
    # The numbers count offsets. Compaction and transactions leave gaps, so there may be fewer records.
    unread = sum(row.lag or 0 for row in new)
    behind = sum(row.lag or 0 for row in rows) - unread
    records = counted(unread, "record")
    if len(new) < len(rows):
        text = f"goes on where it was, {counted(behind, 'record')} behind"
        news = f", and begins {counted(len(new), 'new partition')} at the beginning ({records})"
        return text + (news if new else "")
    # A group with offsets of other topics reads new topics from the beginning, even with `latest`.
    if not is_new:
        return f"new to these topics, begins at the beginning: {records}"
    if kafka.auto_offset_reset == "latest":
        return f"new, begins at the end: {records} will not be read"
    return f"new, begins at the beginning: {records}"


def _is_of_another_destination(found: CheckContext, row: Standing) -> bool:
    """Return True if what the group has committed went to another destination than that of the settings."""
    pinterest, position = found.settings.pinterest, row.position
    if position is None:
        return False
    # Commits of other programs, and of older versions of pinstream, name no destination.
    ours = (None, destination_tag(pinterest.api_url, pinterest.test_mode))
    return offset_map.read_map(position).destination not in ours


async def dead_letter_topics(found: CheckContext) -> Sequence[Row]:
    """Can dead letters be stored, with their whole value?"""
    view, template = cluster_of(found), found.settings.pinstream.dead_letter_topic
    # Dead-letter topic -> the topics that it serves.
    origins: dict[str, list[str]] = {}
    for topic in view.topics:
        origins.setdefault(dead_letter_topic(template, topic), []).append(topic)
    if not origins:
        raise Skip("needs a topic")
    there = sorted(origins.keys() & view.known.keys())
    said = [f"there: {first_of(there)}"] if there else []
    if missing := sorted(origins.keys() - view.known.keys()):
        said.append(f"created with the first dead letter, if this user is allowed to: {first_of(missing)}")
    asked = [*there, *(topic for letters in there for topic in origins[letters])]
    known = await topic_settings(found.settings.kafka.client_properties(), asked, TIMEOUT)
    # Not every broker reports them, nor to every user.
    if unknown := [name for name in asked if name not in known]:
        said.append(f"the brokers do not return the settings of {first_of(unknown)} (grant DESCRIBE_CONFIGS)")
    warnings = []
    for letters in (name for name in there if name in known):
        if known[letters].compacted:
            warnings.append(
                f"{letters} is compacted: letters without a key cannot be stored, and of each key only the last is "
                "kept; set its cleanup.policy=delete"
            )
        # A letter is its record and some headers: the limit must be at least that of the origin.
        most = max((known[topic].largest for topic in origins[letters] if topic in known), default=0)
        if known[letters].largest < most:
            warnings.append(
                f"{letters} takes batches up to {known[letters].largest:,} bytes, the topic it serves {most:,}: larger "
                "letters are stored without their value, which a redrive then has to find at its origin; set its "
                f"max.message.bytes={2 * most}"
            )
    return [ok("; ".join(said)), *map(warning, warnings)]
