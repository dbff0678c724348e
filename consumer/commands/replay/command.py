"""``pinstream replay``, from options to exit code.

The way of a replay::

    settings -> schema and mapping -> ranges, fixed now (or where a named one stopped) -> warnings
      -> the service over a bounded source, to its end -> ledger

The pipeline is the one of ``pinstream run``; what differs is what it is given: a source that ends and belongs to no
group, a converter that selects, a policy with pace and limit, and in a dry run stand-ins for all that writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import click

from consumer import logs
from consumer.adapters.kafka import BoundedSource
from consumer.adapters.kafka.topic_ids import TopicIds
from consumer.app import building
from consumer.app.run import REFUSED_ADVICE, log_kafka_trouble, tune_memory
from consumer.avro.decode import Decoder
from consumer.commands.base import SettingsCommand, say
from consumer.commands.replay.engine import Ran, run_to_end
from consumer.commands.replay.options import ReplayOptions, check_values, read_options
from consumer.commands.replay.outcome import ReplayOutcome, print_replay
from consumer.commands.replay.parts import (
    Outside,
    ReplayScope,
    beside_others,
    only_one,
    outside,
    reading,
    replay_policy,
)
from consumer.commands.replay.selection import Judging, Selecting, WithoutExpired
from consumer.commands.replay.warnings import beforehand
from consumer.commands.replay.watch import watch
from consumer.conversion.converter import Converter
from consumer.engine.pipeline import Pipeline
from consumer.engine.statistics import Statistics
from consumer.errors import DestinationRefused, Incomplete, PinstreamError
from consumer.service import Service, SystemClock
from consumer.settings import Settings, load

_NOT_ALONE = (
    "another replay is running with this PINSTREAM_STATE_DIR: what both of them read may be sent twice"
)
_STILL = 5.0
"""Seconds without a settlement after which that is said."""


@click.command(cls=SettingsCommand)
@click.option("--topic", "topics", multiple=True, required=True, help="Topic to replay; may be repeated.")
@click.option(
    "--partition",
    "partitions",
    multiple=True,
    metavar="P | TOPIC:P",
    help="Only this partition; may be repeated. Default: all.",
)
@click.option(
    "--from",
    "start",
    required=True,
    metavar="X",
    help="First record to replay: beginning, end, offset:N or an ISO 8601 time.",
)
@click.option(
    "--to",
    "stop",
    required=True,
    metavar="Y",
    help="First record not to replay, in the same forms. end is the end when the replay starts.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only events with this value: event_name=checkout, channel=web, ad_account=…, event_id=…; != excludes it. "
    "May be repeated: values of one field are alternatives, different fields must all match.",
)
@click.option(
    "--dry-run", is_flag=True, help="Send and store nothing; show the outcome that every record would have."
)
@click.option(
    "--ignore-dedup",
    is_flag=True,
    help="Also send events that were delivered within PINSTREAM_DEDUP_WINDOW. Pinterest does not deduplicate events "
    "that are more than an hour old, because they count as offline: it counts them twice.",
)
@click.option(
    "--rate",
    metavar="N/s",
    help="Maximum rate of events sent to the API, such as 100/s or 6000/m. Default: no limit.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Stop after N records that match --where."
)
@click.option(
    "--max-age",
    metavar="D",
    help="Events older than this are counted as expired and not sent. Default: PINSTREAM_MAX_EVENT_AGE. 0: no limit.",
)
@click.option(
    "--name",
    metavar="N",
    help="Store the progress under this name, so that the same command continues after an interruption.",
)
@click.option("--json", "as_json", is_flag=True, help="The last line on stdout is the result as JSON.")
def replay(**options: Any) -> None:
    """Send a bounded part of topics through the same pipeline again, then exit.

    The offsets of the running service do not change. Times are the timestamps of Kafka records; without a zone they are
    UTC. Events delivered within the dedup window are not sent again, unless with --ignore-dedup. Exit code 0: all
    records are settled and the ledger adds up; 1: interrupted, or records are still open.

    Pinterest counts a web or app event that arrives more than an hour after it happened as offline and does not
    deduplicate it. So events that a killed replay had in flight, and that are sent again, may be counted twice.

    \b
    pinstream replay --topic orders --from 2026-11-23 --to 2026-11-24T06:00 --dry-run
    pinstream replay --topic orders --partition 3 --from offset:1200 --to end --name after-outage
    """
    _replay_and_tell(read_options(**options))


def _replay_and_tell(options: ReplayOptions) -> None:
    """Replay, and tell of it. Raises what is in the error tree; `Incomplete` if not all is settled."""
    settings = _settings(options, os.environ)
    with contextlib.ExitStack() as stack:
        state_dir = settings.pinstream.state_dir
        if options.name is not None:
            stack.enter_context(only_one(state_dir, options.name))
        if not options.dry_run and stack.enter_context(beside_others(state_dir)):
            say(f"pinstream: warning: {_NOT_ALONE}")
        outcome = asyncio.run(_replay(options, settings))
    print_replay(outcome, as_json=options.as_json)
    trouble, failure = outcome.trouble(), outcome.ran.failure
    if isinstance(failure, DestinationRefused):
        raise DestinationRefused(f"{trouble}; {REFUSED_ADVICE}") from failure
    if failure is not None:
        raise failure
    if trouble is not None:
        raise Incomplete(trouble)


def _settings(options: ReplayOptions, environ: Mapping[str, str]) -> Settings:
    """The settings, ``--max-age`` among them; the log is quieter, since there is a progress bar."""
    given = {"PINSTREAM_LOG_LEVEL": "warning", **environ}
    if "PINSTREAM_LOG_LEVEL" not in environ:
        # librdkafka's own lines: what matters of them comes as trouble, or as the one line at the end.
        logs.mute("consumer.kafka")
    if options.max_age is not None:
        given["PINSTREAM_MAX_EVENT_AGE"] = options.max_age
    needs = ("kafka", "account") if options.dry_run else ("kafka", "account", "token")
    try:
        return load(given, needs=needs)
    except PinstreamError as error:
        if options.max_age is not None and str(error).startswith("PINSTREAM_MAX_EVENT_AGE="):
            raise type(error)(str(error).replace("PINSTREAM_MAX_EVENT_AGE=", "--max-age ", 1)) from None
        raise


async def _replay(options: ReplayOptions, settings: Settings) -> ReplayOutcome:
    building.set_up_logs(settings)
    async with contextlib.AsyncExitStack() as stack:
        local = building.local_schemas(settings)
        schema = building.reader_schema(settings, local)
        converter = building.converter(settings, schema, settings.pinterest.ad_account_ids)
        check_values(options.where, converter.mapping.known_event_names, settings.pinterest.ad_account_ids)
        plan = await reading(options, settings)
        if plan.progress is not None:
            stack.push_async_callback(plan.progress.close)
        if plan.resumed:
            say(_going_on(options, plan))
        for warning in await beforehand(options, settings, plan):
            say(f"pinstream: warning: {warning}")
        writers = building.writer_schemas(settings, local)
        stack.push_async_callback(writers.close)
        world = outside(options, settings, plan.begun, stack)
        decoder = building.decoder(settings, schema)
        sources: list[BoundedSource] = []

        def connect(listener: Service) -> BoundedSource:
            sources.append(_source(settings, plan, listener))
            return sources[0]

        service = Service(
            _pipeline(options, settings, decoder, converter),
            connect=connect,
            api=world.api,
            key_store=world.keys,
            schemas=writers,
            dead_letters=world.letters,
            clock=SystemClock(time.time),
            report=building.log_report,
            grace=settings.pinstream.shutdown_grace,
        )
        tune_memory()
        ran = await _watched(service, sources[0], plan, options)
        return _outcome(options, plan, service, sources[0], world, ran)


def _pipeline(options: ReplayOptions, settings: Settings, decoder: Decoder, converter: Converter) -> Pipeline:
    """What is asked for by ``--where`` is judged between the two steps; else records are read in one go."""
    fast = None if options.where else building.fast_reading(settings, decoder, converter)
    return Pipeline(
        replay_policy(options, settings),
        Judging(decoder) if options.where else decoder,
        Selecting(converter, options.where),
        reading=None if fast is None else WithoutExpired(fast),
        seed=time.time_ns(),
    )


def _source(settings: Settings, plan: ReplayScope, listener: Service) -> BoundedSource:
    return BoundedSource(
        settings.kafka.client_properties(),
        plan.ranges,
        listener=listener,
        progress=plan.progress,
        starts=plan.starts,
        on_trouble=log_kafka_trouble,
        topic_ids=TopicIds(settings.kafka.client_properties()),
    )


async def _watched(service: Service, source: BoundedSource, plan: ReplayScope, options: ReplayOptions) -> Ran:
    """Run to the end, with a bar or lines that show how far it is."""
    left = plan.left()
    total = sum(end - begin for begin, end in left.values())
    what = "dry run" if options.dry_run else "replay"
    with watch(what, min(total, options.limit or total)) as shown:

        def show() -> None:
            statistics = service.statistics()
            read = sum(max(0, at - left[name][0]) for name, at in source.figures().items())
            shown.show(_done(statistics, read, options.limit), _note(statistics))

        return await run_to_end(service, source, show)


def _done(statistics: Statistics, read: int, limit: int | None) -> int:
    """How much is done: of the offsets, those that nothing open lies in; of a limit, what counts for it."""
    totals = statistics.totals
    if limit is not None:
        return totals.delivered + totals.duplicate + totals.dead_lettered
    return read - totals.open - statistics.held


def _note(statistics: Statistics) -> str:
    """What the bar says beside the count: above all why nothing moves."""
    parts = [f"{statistics.totals.delivered:,} delivered"]
    if statistics.destination != "open":
        reasons = sorted({one.reason for one in statistics.accounts if one.reason})
        why = f" ({'; '.join(reasons)})" if reasons else ""
        parts.append(f"destination {statistics.destination}{why}")
    if statistics.waiting_for_schema:
        parts.append(f"{statistics.waiting_for_schema:,} wait for their schema")
    if statistics.totals.open and statistics.seconds_since_progress > _STILL:
        parts.append(f"nothing settled for {statistics.seconds_since_progress:.0f} s")
    return ", ".join(parts)


def _going_on(options: ReplayOptions, plan: ReplayScope) -> str:
    left = sum(end - begin for begin, end in plan.left().values())
    total = sum(one.end - one.begin for one in plan.ranges)
    begun = datetime.fromtimestamp(plan.begun, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    if not left:
        return f"the replay {options.name}, begun at {begun}, is done: nothing is left; another --name begins anew"
    return f"going on with the replay {options.name}, begun at {begun}: up to {left:,} of {total:,} records are left"


def _outcome(
    options: ReplayOptions,
    plan: ReplayScope,
    service: Service,
    source: BoundedSource,
    world: Outside,
    ran: Ran,
) -> ReplayOutcome:
    return ReplayOutcome(
        ran=ran,
        ranges=plan.ranges,
        begun_at={name: begin for name, (begin, _) in plan.left().items()},
        read_to=source.figures(),
        left_at=service.pipeline.left_at(),
        outside_time=source.outside_time,
        problems=service.pipeline.problems,
        dry_run=options.dry_run,
        name=options.name,
        resumed=plan.resumed,
        sent_again=world.sent_again,
    )
