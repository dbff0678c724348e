"""``pinstream replay``, from options to exit code.

The way of a replay::

    settings -> schema and mapping -> ranges, fixed now (or where a named one stopped) -> warnings
      -> the service over a bounded source, to its end -> ledger

The pipeline is the one of ``pinstream run``; what differs is what it is given: a source that ends and belongs to no
group, a converter that selects, a policy with pace and limit, and in a dry run fakes for all that writes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import click

from consumer.adapters.kafka.replay_progress import MAX_METADATA, ReplayPlan
from consumer.adapters.thread import run_on_loop
from consumer.app import building
from consumer.app.ending import Parts
from consumer.app.receipts import receipt_writer
from consumer.commands.base import SettingsCommand, flag_option, iso, repeatable, say
from consumer.commands.comparison import agrees, of_old
from consumer.commands.parsing import (
    AGAINST_OPTION,
    JSON_OPTION,
    PARTITION_OPTION,
    RATE_OPTION,
    parse_bound,
    parsed_option,
    topics_option,
)
from consumer.commands.replay.against import Against
from consumer.commands.replay.bounded_run import LOST, bounded_source, load_quietly, serve_to_end
from consumer.commands.replay.fakes import DryRun, SendingAgain, alone, open_keys
from consumer.commands.replay.options import (
    LeavingOut,
    ReplayOptions,
    Selecting,
    WithoutMissing,
    check_values,
    parse_where,
)
from consumer.commands.replay.outcome import ReplayOutcome, show_replay
from consumer.commands.replay.plan import beforehand, make_plan
from consumer.commands.results import print_result
from consumer.conversion.targets import EVENT_NAMES
from consumer.engine.figures.statistics import Statistics
from consumer.engine.model import Policy
from consumer.errors import PinstreamError, UsageError
from consumer.settings import Settings

# More calls a minute than a dry run can make.
_DRY_CALLS = 1_000_000
# Seconds without a settlement after which the bar shows that.
_STILL = 5.0


@click.command(cls=SettingsCommand)
@topics_option(required=True, help="Topic to replay; may be repeated.")
@PARTITION_OPTION
@parsed_option(
    "--from", parse_bound, "start", required=True, metavar="X",
    help="First record to replay: beginning, end, offset:N or an ISO 8601 time.",
)  # fmt: skip
@parsed_option(
    "--to", parse_bound, "stop", required=True, metavar="Y",
    help="First record not to replay, in the same forms. end: the end when the replay starts.",
)  # fmt: skip
@repeatable(
    "--where",
    callback=lambda _ctx, _param, texts: parse_where(texts),
    metavar="FIELD=VALUE",
    help="Only events with this value: event_name=checkout, channel=web, ad_account=…, event_id=…; != excludes it. "
    "May be repeated: values of one field are alternatives, different fields must all match.",
)
@flag_option("--dry-run", help="Send and store nothing; show the outcome that every record would have.")
@flag_option(
    "--ignore-dedup",
    help="Also send events that were delivered within PINSTREAM_DEDUP_WINDOW. Pinterest does not deduplicate events "
    "that are more than an hour old, because they count as offline: it counts them twice.",
)
@RATE_OPTION
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
@AGAINST_OPTION
@JSON_OPTION
def replay(**given: Any) -> None:
    """Send a bounded part of topics through the same pipeline again, then exit.

    The offsets of the running service do not change. Times are the timestamps of Kafka records; without a zone they are
    UTC. Events delivered within the dedup window are not sent again, except with --ignore-dedup. Exit code 0: all
    records are settled and the ledger adds up; 1: interrupted, or records are still open, or --against found a change.

    Pinterest counts a web or app event that arrives more than an hour after it happened as offline and does not
    deduplicate it. So events that a killed replay had in flight, and that are sent again, may be counted twice.

    \b
    pinstream replay --topic orders --from 2026-11-23 --to 2026-11-24T06:00 --dry-run
    pinstream replay --topic orders --partition 3 --from offset:1200 --to end --name after-outage
    """
    # Options before settings: errors of the command line do not depend on settings.
    options = ReplayOptions(**given)
    settings = _settings(options)
    with contextlib.ExitStack() as stack:
        state_dir, name = settings.pinstream.state_dir, options.name
        # Two processes under one name would commit over each other.
        if name is not None and not stack.enter_context(alone(state_dir, f"name-{name}.lock")):
            raise UsageError(
                f"--name {name}: a replay of this name is running; wait for it, or use another name"
            )
        # Two replays of the same records would both send them: neither finds a key before the other has stored it.
        if not options.dry_run and not stack.enter_context(alone(state_dir, "sending.lock", shared=True)):
            say(
                "pinstream: warning: another replay is running with this PINSTREAM_STATE_DIR: what both of them read "
                "may be sent twice"
            )
        outcome = run_on_loop(_replay(options, settings))
    # Printed in any case, before the error: events that were delivered before a failure stay delivered.
    print_result(show_replay, outcome.document(), as_json=options.as_json, beside=True, lost=LOST)
    if (failure := outcome.failure()) is not None:
        raise failure
    # No error line: the differences show what is wrong.
    if outcome.against is not None and not agrees(outcome.against):
        sys.exit(1)


def _settings(options: ReplayOptions) -> Settings:
    """Load the settings; ``--max-age`` becomes one of them."""
    given = {} if options.max_age is None else {"PINSTREAM_MAX_EVENT_AGE": options.max_age}
    # A dry run calls no API. It needs the account, because a record may name one that is not configured.
    needs = ("kafka", "account") if options.dry_run else ("kafka", "account", "token")
    try:
        settings = load_quietly({**os.environ, **given}, needs)
    except PinstreamError as error:
        # The user typed the option, and may not know the setting that it becomes.
        if given and str(error).startswith("PINSTREAM_MAX_EVENT_AGE="):
            raise type(error)(str(error).replace("PINSTREAM_MAX_EVENT_AGE=", "--max-age ", 1)) from None
        raise
    if (receipts := settings.pinstream.receipts_topic) in options.topics:
        raise UsageError(f"--topic {receipts}: it holds receipts (PINSTREAM_RECEIPTS_TOPIC), not events")
    return settings


async def _replay(options: ReplayOptions, settings: Settings) -> ReplayOutcome:
    where = options.where
    async with Parts() as stack:
        # Before the brokers are asked: all that needs only the settings and the mapping.
        schemas = building.local_schemas(settings)
        mapped = building.sections(settings, schemas)
        function = building.transformer(settings, mapped)
        against = None
        if options.against is not None:
            with of_old(settings, options.against) as of:
                against = Against(settings, mapped, building.sections(of, schemas), where)
        pipeline = building.pipeline(
            settings,
            mapped,
            _limits(options, settings),
            decoding=against.decoding if against else WithoutMissing if where else None,
            converting=partial(Selecting, conditions=where) if where else None,
            around=against.around if against else partial(LeavingOut, where=bool(where)),
            # `--where` is about conversion events as objects, which the fast path never makes.
            fast=not where,
        )
        check_values(where, EVENT_NAMES.union(mapped.own_events), settings.pinterest.ad_account_ids)
        plan = await make_plan(options, settings)
        # Closed last, after the service's last commit, which goes through it.
        if plan.progress is not None:
            stack.push_async_callback(plan.progress.close)
        if plan.resumed:
            say(_going_on(options, plan))
        async for warning in beforehand(options, settings, plan):
            say(f"pinstream: warning: {warning}")
        keys = open_keys(options, settings, plan.begun, stack)
        left, source = plan.left(), bounded_source(settings, plan.ranges, plan.progress)

        dry = DryRun() if options.dry_run else None
        service = building.service(
            settings,
            pipeline,
            lambda _: source,
            keys,
            schemas,
            function,
            stack,
            building.Wraps(
                dry_run=dry,
                letters=dry,
                receipts=receipt_writer(settings, pipeline, mapped, "replay", stack),
            ),
        )
        source.listener = service

        def progress(statistics: Statistics) -> tuple[int, str]:
            totals = statistics.totals
            # The limit counts records that match `--where`, so the bar does too.
            if options.limit is not None:
                return totals.delivered + totals.duplicate + totals.dead_lettered, _note(statistics)
            # Otherwise the bar counts offsets that are read, without those that are open or not taken in yet.
            read = sum(max(0, at - left[name][0]) for name, at in source.figures.items())
            return read - totals.open - statistics.held, _note(statistics)

        total = sum(end - begin for begin, end in left.values())
        # The bar ends at the limit, or at the end of a range that has fewer records.
        shown, what = min(total, options.limit or total), "dry run" if options.dry_run else "replay"
        ran = await serve_to_end(service, source, what, shown, progress)
        return ReplayOutcome(
            ran,
            options,
            plan,
            read_to=source.figures,
            last_positions=pipeline.last_positions(),
            outside_time=source.outside_time,
            problems=pipeline.problems,
            sent_again=keys.again if isinstance(keys, SendingAgain) else None,
            against=None if against is None else against.document(ran.statistics.totals.read),
        )


def _limits(options: ReplayOptions, settings: Settings) -> Policy:
    """Return the service's limits with those of the replay."""
    limits = replace(building.policy(settings, options.rate), max_records=options.limit)
    if options.name is not None:
        # Beside the offset map, a commit holds the replay's plan.
        limits = replace(limits, map_bytes=MAX_METADATA)
    if options.dry_run:
        # A dry run makes no calls, so it needs no quota, and claims nothing, so it needs no lease. It writes no dead
        # letters, so it needs no guard, and it is to count all problems. Nor does it write receipts.
        limits = replace(
            limits, calls_per_minute=_DRY_CALLS, lease=0.0, dead_letter_share=1.0, receipts=False
        )
    return limits


def _note(statistics: Statistics) -> str:
    """Return the text beside the bar, above all why nothing moves."""
    parts = [f"{statistics.totals.delivered:,} delivered"]
    if statistics.destination != "open":
        reasons = sorted({one.reason for one in statistics.accounts if one.reason})
        why = f" ({'; '.join(reasons)})" if reasons else ""
        parts.append(f"destination {statistics.destination}{why}")
    # These records are open, and are settled only when the registry answers.
    if statistics.waiting_for_schema:
        parts.append(f"{statistics.waiting_for_schema:,} wait for their schema")
    if statistics.totals.open and statistics.seconds_since_progress > _STILL:
        parts.append(f"nothing settled for {statistics.seconds_since_progress:.0f} s")
    return ", ".join(parts)


def _going_on(options: ReplayOptions, plan: ReplayPlan) -> str:
    left = sum(end - begin for begin, end in plan.left().values())
    total = sum(one.end - one.begin for one in plan.ranges)
    begun = iso(plan.begun * 1000)
    # The command would end at once and do nothing: the user may have wanted to replay the same range again.
    if not left:
        return f"the replay {options.name}, begun at {begun}, is done: nothing is left; another --name starts again"
    return f"going on with the replay {options.name}, begun at {begun}: up to {left:,} of {total:,} records are left"
