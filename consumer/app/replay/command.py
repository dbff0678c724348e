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
import time
from collections.abc import Mapping

from consumer import logs
from consumer.adapters.kafka import BoundedSource
from consumer.app import building
from consumer.app.records import say
from consumer.app.replay.engine import Ran, run_to_end
from consumer.app.replay.locking import only_one
from consumer.app.replay.options import ReplayOptions, check_event_names
from consumer.app.replay.outcome import Outcome, tell
from consumer.app.replay.parts import Outside, Reading, outside, policy, reading
from consumer.app.replay.warnings import beforehand
from consumer.app.replay.watch import watch
from consumer.app.run import REFUSED_ADVICE, log_kafka_trouble, tune_garbage_collector
from consumer.core.model import TopicPartition
from consumer.core.pipeline import Pipeline
from consumer.core.selection import Selecting
from consumer.errors import DestinationRefused, Incomplete, PinstreamError
from consumer.service import Service, SystemClock
from consumer.settings import Settings, load


def run_replay(options: ReplayOptions, environ: Mapping[str, str]) -> None:
    """Replay, and tell of it. Raises what is in the error tree; `Incomplete` if not all is settled."""
    settings = _settings(options, environ)
    with contextlib.ExitStack() as stack:
        if options.name is not None:
            building.make_state_folder(settings.pinstream.state_dir)
            stack.enter_context(only_one(settings.pinstream.state_dir, options.name))
        outcome = asyncio.run(_replay(options, settings))
    tell(outcome, as_json=options.as_json)
    trouble = outcome.trouble()
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


async def _replay(options: ReplayOptions, settings: Settings) -> Outcome:
    building.set_up_logs(settings)
    async with contextlib.AsyncExitStack() as stack:
        local = building.local_schemas(settings)
        schema = building.reader_schema(settings, local)
        converter = building.converter(settings, schema, settings.pinterest.ad_account_ids)
        check_event_names(options.where, converter.mapping.known_event_names)
        plan = await reading(options, settings)
        if plan.progress is not None:
            stack.push_async_callback(plan.progress.close)
        for warning in await beforehand(options, settings, plan):
            say(f"pinstream: warning: {warning}")
        writers = building.writer_schemas(settings, local)
        stack.push_async_callback(writers.close)
        world = outside(options, settings, plan.begun, stack)
        decoder = building.decoder(settings, schema)
        selecting = Selecting(converter, options.where)
        sources: list[BoundedSource] = []

        def connect(listener: Service) -> BoundedSource:
            sources.append(_source(settings, plan, listener))
            return sources[0]

        service = Service(
            Pipeline(policy(options, settings), decoder, selecting, seed=time.time_ns()),
            connect=connect,
            api=world.api,
            key_store=world.keys,
            schemas=writers,
            dead_letters=world.letters,
            clock=SystemClock(time.time),
            report=building.log_report,
            grace=settings.pinstream.shutdown_grace,
        )
        tune_garbage_collector()
        ran = await _watched(service, sources[0], plan, options)
        return _outcome(options, plan, service, sources[0], world, ran)


def _source(settings: Settings, plan: Reading, listener: Service) -> BoundedSource:
    return BoundedSource(
        settings.kafka.client_properties(),
        plan.ranges,
        listener=listener,
        progress=plan.progress,
        starts=plan.starts,
        on_trouble=log_kafka_trouble,
    )


async def _watched(service: Service, source: BoundedSource, plan: Reading, options: ReplayOptions) -> Ran:
    """Run to the end, with a bar or lines that show how far it is."""
    left = plan.left()
    total = sum(end - begin for begin, end in left.values())
    what = "dry run" if options.dry_run else "replay"
    with watch(what, min(total, options.limit or total)) as shown:

        def show() -> None:
            done = sum(max(0, at - left[name][0]) for name, at in source.figures().items())
            shown.show(done, _note(service))

        try:
            return await run_to_end(service, source, show)
        except DestinationRefused as refused:
            raise DestinationRefused(f"{refused}; {REFUSED_ADVICE}") from refused


def _note(service: Service) -> str:
    """What the bar says beside the count: above all why nothing moves."""
    statistics = service.statistics()
    text = f"{statistics.totals.delivered:,} delivered"
    if statistics.destination == "open":
        return text
    reasons = sorted({one.reason for one in statistics.accounts if one.reason})
    return f"{text}, destination {statistics.destination}" + (f" ({'; '.join(reasons)})" if reasons else "")


def _outcome(
    options: ReplayOptions, plan: Reading, service: Service, source: BoundedSource, world: Outside, ran: Ran
) -> Outcome:
    return Outcome(
        ran=ran,
        ranges=plan.ranges,
        read_to=source.figures(),
        left_at={TopicPartition(one.topic, one.partition): one.next_offset for one in service.left_at},
        outside_time=source.outside_time,
        problems=world.letters.problems,
        dry_run=options.dry_run,
        name=options.name,
        sent_again=world.sent_again,
    )
