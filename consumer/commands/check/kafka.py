"""Questions to the brokers: topics, the start of the group, dead-letter topics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import confluent_kafka

from consumer.adapters.aws import msk
from consumer.adapters.kafka.client_errors import NOT_ALLOWED, describe_error
from consumer.adapters.kafka.cluster import TopicSettings, describe_cluster, setting_command, topic_settings
from consumer.adapters.kafka.configuration import dead_letter_topic, uses_consumer_protocol
from consumer.adapters.kafka.dead_letters import SIZE_LIMIT, compaction, room_for
from consumer.adapters.kafka.groups import GroupOffsets, try_to_join
from consumer.adapters.thread import run_blocking
from consumer.app import building
from consumer.commands.check import granted
from consumer.commands.check.rows import (
    OF_SETTINGS,
    TIMEOUT,
    CheckContext,
    Row,
    Skip,
    cluster_of,
    failed,
    ok,
    warning,
)
from consumer.commands.group_position import GroupPosition, problems
from consumer.commands.results import counted
from consumer.engine.model import TopicPartition, differing
from consumer.engine.records import offset_map
from consumer.errors import KafkaError, first_of


async def cluster(found: CheckContext) -> Sequence[Row]:
    """Are the brokers there, and the topics, with a leader for each partition?"""
    kafka = found.settings.kafka
    config = kafka.client_properties()
    found.cluster = view = await describe_cluster(
        config,
        kafka.topics,
        timeout=TIMEOUT,
        # A pattern does not mean the topics of ours that it matches.
        own_topics=found.settings.pinstream.own_topics,
        joins=True,
    )
    # The service would wait for a leader; here it is an error, because the user can act on it now.
    if view.leaderless:
        without = first_of([str(one) for one in view.leaderless])
        raise KafkaError(f"partitions without a leader cannot be read now: {without}; check the brokers")
    lacks = await _lacking(found, ("READ", "DESCRIBE_CONFIGS"), view.topics)
    if lacks["READ"]:
        raise KafkaError(f"Kafka: {_grant(found, 'READ', lacks['READ'])}")
    topics = [f"{name} ({counted(partitions, 'partition')})" for name, partitions in view.topics.items()]
    unmatched = "KAFKA_TOPICS: no topic matches {} yet; one that is created later is read from its beginning"
    logins = [await run_blocking("pinstream-msk", msk.tokens_for, config)] if kafka.uses_iam else []
    return [
        ok(f"{counted(len(view.brokers), 'broker')}; {first_of(topics) or 'no topic'}"),
        *(ok(f"logs in with {msk.MECHANISM}: {login.used}") for login in logins),
        *(warning(unmatched.format(pattern)) for pattern in view.unmatched),
        *_without_settings(found, lacks["DESCRIBE_CONFIGS"]),
    ]


async def _lacking(
    found: CheckContext, operations: Sequence[str], topics: Collection[str]
) -> dict[str, list[str]]:
    config = found.settings.kafka.client_properties()
    return await run_blocking("pinstream-kafka-rights", granted.lacking, config, operations, topics, TIMEOUT)


def _grant(found: CheckContext, operation: str, names: Sequence[str], kind: str = "topic") -> str:
    """Return that this user lacks an operation, and how to grant it."""
    # With IAM, MSK ignores Kafka's own ACLs.
    form = "iam" if found.settings.kafka.uses_iam else "kafka-acls"
    return (
        f"this user lacks {operation} on the {kind} {first_of(names)}: grant {operation} on it (`pinstream check "
        f"--rights {form}` prints how)"
    )


def _without_settings(found: CheckContext, topics: Sequence[str]) -> list[Row]:
    """Return the warning for topics whose settings this user may not see; none without such topics."""
    unseen = "; without it, how large a batch it takes is not known"
    return [warning(_grant(found, "DESCRIBE_CONFIGS", topics) + unseen)] if topics else []


async def group(found: CheckContext) -> Sequence[Row]:
    """Where does the group begin to read, and who is in it now?"""
    view, kafka = cluster_of(found), found.settings.kafka
    partitions = [
        TopicPartition(topic, one) for topic, maximum in view.topics.items() for one in range(maximum)
    ]
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
    # Of all names that begin so; this one is in use nowhere.
    replays = f"{kafka.group_id}.replay."
    refused = await run_blocking(
        "pinstream-kafka-rights", granted.group_refused, config, f"{replays}check", TIMEOUT
    )
    rows = [GroupPosition(name, positions.get(name), extent) for name, extent in extents.items()]
    begin = _begin(found, rows, is_new=not positions)
    if members.state == "Unknown":
        now = "these brokers do not list its members"
    else:
        now = f"{counted(len(members.members), 'member')} now" if members.members else "no member now"
    known = [row for row in rows if row.position is not None]
    warnings = [*problems(known)]
    if refused:
        of_replays = _grant(found, "READ", [f"{replays}…"], "groups")
        warnings.append(f"{of_replays}; without it, `pinstream replay --name` is refused")
    warnings += _by_other_settings(found, known)
    if other := [str(row.place) for row in known if _is_of_another_destination(found, row)]:
        warnings.append(
            f"{first_of(other)}: committed for another PINTEREST_API_URL or PINTEREST_TEST_MODE; earlier records are "
            "not sent to this one: give each its own KAFKA_GROUP_ID, or move the group with `pinstream offsets set`"
        )
    return [ok(f"{kafka.group_id}: {begin}; {now}"), *map(warning, warnings)]


def _begin(found: CheckContext, rows: Sequence[GroupPosition], *, is_new: bool) -> str:
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


def _is_of_another_destination(found: CheckContext, row: GroupPosition) -> bool:
    """Return True if what the group has committed went to another destination than that of the settings."""
    if row.position is None:
        return False
    # Commits of other programs, and of older versions of pinstream, name no destination.
    return offset_map.read_map(row.position).destination not in (None, *building.destinations(found.settings))


def _by_other_settings(found: CheckContext, rows: Sequence[GroupPosition]) -> Iterator[str]:
    """Yield in what the members that committed last send by other settings than these."""
    if found.sections is None:
        return
    ours = building.fingerprint_of(found.settings, found.sections)
    places: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        said = None if row.position is None else offset_map.read_map(row.position).fingerprint
        for name in differing(ours, said):
            places[name].append(str(row.place))
    for name, partitions in places.items():
        yield f"{first_of(partitions)}: last read by a member with another {OF_SETTINGS[name]}"


async def dead_letter_topics(found: CheckContext) -> Sequence[Row]:
    """Can dead letters be stored, with their whole value?"""
    rows, known, origins = await _written(found, found.settings.pinstream.dead_letter_topic)
    servers = found.settings.kafka.bootstrap_servers
    for letters in (name for name in origins if name in known):
        if known[letters].compacted:
            rows.append(warning(compaction(letters, servers)))
        # A letter is its record and some headers: the limit must be at least that of the origin.
        maximum = max((known[topic].largest for topic in origins[letters] if topic in known), default=0)
        if known[letters].largest < maximum:
            command = setting_command(servers, letters, f"{SIZE_LIMIT}={room_for(maximum)}")
            rows.append(
                warning(
                    f"{letters} takes batches up to {known[letters].largest:,} bytes ({SIZE_LIMIT}), the topic it "
                    f"serves {maximum:,}: larger letters are stored without their value, which a redrive then has to "
                    f"find at its origin; change it: {command}"
                )
            )
    return rows


async def receipts_topic(found: CheckContext) -> Sequence[Row]:
    """Can receipts be stored, so that none replaces another?"""
    topic = found.settings.pinstream.receipts_topic
    if topic is None:
        return []
    rows, known, _ = await _written(found, topic, "receipt", "trace")
    if topic in known and known[topic].compacted:
        rows.append(failed(compaction(topic, found.settings.kafka.bootstrap_servers)))
    return rows


async def _written(
    found: CheckContext, template: str, what: str = "dead letter", reader: str = "dead-letters"
) -> tuple[list[Row], Mapping[str, TopicSettings], Mapping[str, Sequence[str]]]:
    """Return whether the topics that `template` names can be written, the settings of those and of the topics that they
    serve, and which topics each of them serves."""
    view = cluster_of(found)
    origins: dict[str, list[str]] = {}
    for topic in view.topics:
        origins.setdefault(dead_letter_topic(template, topic), []).append(topic)
    if not origins:
        raise Skip("needs a topic")
    config = found.settings.kafka.client_properties()
    there = sorted(origins.keys() & view.known.keys())
    absent = sorted(origins.keys() - view.known.keys())
    lacks = await _lacking(found, ("WRITE", "DESCRIBE_CONFIGS", "READ"), sorted(origins))
    rows = [failed(f"Kafka: {_grant(found, 'WRITE', lacks['WRITE'])}")] if lacks["WRITE"] else []
    if absent:
        wanted = {letters: origins[letters][0] for letters in absent}
        errors = await run_blocking("pinstream-kafka-rights", granted.uncreatable, config, wanted, TIMEOUT)
        rows += [*_uncreatable(found, errors)]
        # A topic that is not there is described to anyone who has any right on it.
        if not rows and not await run_blocking(
            "pinstream-kafka-rights", granted.may_produce, config, TIMEOUT
        ):
            rows = [failed(f"Kafka: {_grant(found, 'WRITE', absent)}")]
    rows += _without_settings(found, lacks["DESCRIBE_CONFIGS"])
    said = [f"there: {first_of(there)}"] if there else []
    said += [f"created with the first {what}: {first_of(absent)}"] if absent and not rows else []
    asked = [*there, *(topic for letters in there for topic in origins[letters])]
    known = await topic_settings(config, asked, TIMEOUT)
    # Not every broker reports them.
    unknown = [name for name in asked if name not in known and name not in lacks["DESCRIBE_CONFIGS"]]
    said += [f"the brokers do not return the settings of {first_of(unknown)}"] if unknown else []
    # Often another user's.
    unread = [name for name in there if name in lacks["READ"]]
    said += (
        [f"`pinstream {reader}` needs READ, which this user lacks, on {first_of(unread)}"] if unread else []
    )
    return [*([ok("; ".join(said))] if said else []), *rows], known, origins


def _uncreatable(found: CheckContext, errors: Mapping[str, confluent_kafka.KafkaError]) -> Iterator[Row]:
    """Yield a row for the dead-letter topics that this user may not create, and for each that cannot be created."""
    refused = [topic for topic, error in errors.items() if error.code() in NOT_ALLOWED]
    if refused:
        yield failed(f"Kafka: {_grant(found, 'CREATE', refused)}, or create it")
    for topic, error in errors.items():
        # A topic that exists, and that this user may not see, is among those that it lacks WRITE on.
        if topic not in refused and error.code() != confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS:
            yield failed(f"Kafka: {topic} cannot be created: create it ({describe_error(error)})")
