"""``pinstream offsets show`` and ``pinstream offsets set``."""

from __future__ import annotations

import os
from typing import Any

import click

from consumer.commands.base import Command
from consumer.commands.root import main


class _Offsets(click.Group):
    """A group within the group: the outer one ends commands, so this one is a plain one."""

    command_class = Command


@main.group(cls=_Offsets)
def offsets() -> None:
    """Where the consumer group stands, and moving it: the next run reads from there.

    To send a part of a topic again without moving the group, use `pinstream replay`.
    """


_GROUP = click.option("--group", metavar="G", help="The consumer group. Default: KAFKA_GROUP_ID.")
_TOPICS = "topics"
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout instead of tables.")


@offsets.command()
@_GROUP
@click.option(
    "--topic",
    _TOPICS,
    multiple=True,
    metavar="T",
    help="Only this topic; may be repeated. Default: KAFKA_TOPICS and whatever the group has offsets for.",
)
@_JSON
def show(**options: Any) -> None:
    """What the group has committed of each partition, what is left to read, and who is in it.

    "Settled above": records after the committed offset that are done already and will not be read again. Needs only
    the KAFKA_… settings.
    """
    from consumer.commands.offsets.command import ShowOptions, run_show

    run_show(ShowOptions(**options), os.environ)


@offsets.command(name="set")
@click.option(
    "--to",
    required=True,
    metavar="X",
    help="beginning, end, offset:N or an ISO 8601 time (without a zone: UTC): the first record to read. By time: in "
    "each partition the first record with that Kafka timestamp or a later one, else its end.",
)
@_GROUP
@click.option(
    "--topic",
    _TOPICS,
    multiple=True,
    metavar="T",
    help="Only this topic; may be repeated. Default: KAFKA_TOPICS; without it, whatever the group has offsets for.",
)
@click.option(
    "--partition",
    "partitions",
    multiple=True,
    metavar="P | TOPIC:P",
    help="Only this partition; may be repeated. Default: all.",
)
@click.option("--yes", is_flag=True, help="Do it. Without it, it only shows what would change.")
@_JSON
def set_(**options: Any) -> None:
    """Move the group: the next `pinstream run` reads on from there. Shows before and after; --yes does it.

    Refused while the group has active members: stop every `pinstream run` of it first. Moved back, records are read
    again (delivered ones are recognised within PINSTREAM_DEDUP_WINDOW); moved forward, records are skipped. Needs
    only the KAFKA_… settings.

    \b
    pinstream offsets set --to 2026-11-24T06:00
    pinstream offsets set --to offset:1200 --partition orders:3 --yes
    """
    from consumer.commands.offsets.command import SetOptions, run_set

    run_set(SetOptions(**options), os.environ)
