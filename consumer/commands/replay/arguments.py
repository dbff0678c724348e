"""``pinstream replay``."""

from __future__ import annotations

import os
from typing import Any

import click

from consumer.commands.base import SettingsCommand
from consumer.commands.root import main


@main.command(cls=SettingsCommand)
@click.option("--topic", "topics", multiple=True, required=True, help="What to replay; may be repeated.")
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
    help="beginning, end, offset:N or an ISO 8601 time: the first record that is replayed.",
)
@click.option(
    "--to",
    "stop",
    required=True,
    metavar="Y",
    help="Likewise: the first record that is not replayed any more. end is fixed when the replay starts.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Only events like this: event_name=checkout, channel=web, ad_account=…, event_id=…; != for all others. "
    "Repeated: values of one field are alternatives, different fields must all hold.",
)
@click.option(
    "--dry-run", is_flag=True, help="Send and store nothing; show what would become of every record."
)
@click.option(
    "--ignore-dedup",
    is_flag=True,
    help="Send again what was delivered within PINSTREAM_DEDUP_WINDOW. The platform drops no doubles of what"
    " happened more than an hour ago: it counts as offline, and is then counted twice.",
)
@click.option(
    "--rate",
    metavar="N/s",
    help="How many events a second go to the API at most: 100/s, 6000/m. Default: no limit.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="N", help="Stop after N records that --where lets through."
)
@click.option(
    "--max-age",
    metavar="D",
    help="Events older than this are expired: counted, not sent. Default: PINSTREAM_MAX_EVENT_AGE. 0: no limit.",
)
@click.option(
    "--name",
    metavar="N",
    help="Keep the progress under this name, so that the same command goes on where it was interrupted.",
)
@click.option("--json", "as_json", is_flag=True, help="The last line on stdout is the result as JSON.")
def replay(**options: Any) -> None:
    """A bounded part of topics through the very same pipeline, then exit.

    The group of the running service is not touched. Times are those of the Kafka records; without a zone they are
    UTC. What was delivered within the dedup window is not sent again, unless --ignore-dedup. Exit code 0: everything
    is settled and the ledger adds up; 1: interrupted, or something is left open.

    A web or app event that arrives more than an hour after it happened counts as offline at the platform, which drops
    no doubles of those: what a killed replay had in flight, and sends again, may be counted twice.

    \b
    pinstream replay --topic orders --from 2026-11-23 --to 2026-11-24T06:00 --dry-run
    pinstream replay --topic orders --partition 3 --from offset:1200 --to end --name after-outage
    """
    from consumer.commands.replay.command import run_replay
    from consumer.commands.replay.options import read_options

    run_replay(read_options(**options), os.environ)
