"""``pinstream dead-letters``: list, show, redrive."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from consumer.commands.base import Command, parse_time
from consumer.errors import UsageError

_F = TypeVar("_F", bound=Callable[..., Any])


class _DeadLetters(click.Group):
    """A group within the group: the outer one ends commands, so this one is a plain one."""

    command_class = Command


@click.group(name="dead-letters", cls=_DeadLetters)
def dead_letters() -> None:
    """List, show and redrive records that could not be delivered."""


def _filtered(command: _F) -> _F:
    """Add the options that select letters."""
    options = (
        click.option(
            "--topic",
            "topics",
            multiple=True,
            metavar="T",
            help="Letters of this topic (or: on this dead-letter topic); may be repeated. Default: KAFKA_TOPICS.",
        ),
        click.option(
            "--stage",
            "stages",
            multiple=True,
            type=click.Choice(["decode", "convert", "deliver"]),
            help="Only what died here; may be repeated.",
        ),
        click.option(
            "--code", "codes", multiple=True, metavar="C", help="Only this reason; may be repeated."
        ),
        click.option("--since", metavar="TIME", help="Only what died at or after this time (ISO 8601)."),
        click.option("--until", metavar="TIME", help="Only what died before this time."),
        click.option(
            "--origin",
            "origins",
            multiple=True,
            metavar="TOPIC[:PARTITION[:OFFSET]]",
            help="Only records from here; may be repeated.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


_JSON = click.option("--json", "as_json", is_flag=True, help="The last line on stdout is the result as JSON.")


def _filters(stages: Any, codes: Any, since: str | None, until: str | None, origins: Any) -> Any:
    from consumer.adapters.kafka.letters import Filters, parse_origin
    from consumer.engine.model import Stage

    try:
        found = tuple(parse_origin(text) for text in origins)
    except ValueError as error:
        raise UsageError(f"--origin {error}") from None
    since_ms = None if since is None else parse_time(since, "--since")
    until_ms = None if until is None else parse_time(until, "--until")
    if since_ms is not None and until_ms is not None and since_ms >= until_ms:
        raise UsageError("--since must be before --until: no letter can match")
    return Filters(frozenset(map(Stage, stages)), frozenset(codes), since_ms, until_ms, found)


@dead_letters.command(name="list")
@_filtered
@click.option(
    "--latest",
    type=click.IntRange(0, 1000),
    default=10,
    show_default=True,
    help="How many of the latest to show.",
)
@_JSON
def list_(
    topics: tuple[str, ...],
    stages: Any,
    codes: Any,
    since: str | None,
    until: str | None,
    origins: Any,
    latest: int,
    as_json: bool,
) -> None:
    """How many letters there are, by topic, stage and code; and the latest. Never a key or a value.

    waiting: still to be looked at; done: redriven. Needs only the KAFKA_… settings.
    """
    from consumer.commands.dead_letters.listing import ListOptions, run_list

    filters = _filters(stages, codes, since, until, origins)
    run_list(ListOptions(topics, filters, latest, as_json), os.environ)


@dead_letters.command()
@click.argument("place", metavar="TOPIC:PARTITION:OFFSET")
@click.option("--payload", is_flag=True, help="Also the record, decoded; personal values are masked.")
@_JSON
def show(place: str, payload: bool, as_json: bool) -> None:
    """One letter: where it is from, and why it died. TOPIC is the dead-letter topic, as `list` shows it.

    Key, value and headers are not shown, but for what --payload shows: fields that the mapping knows to say nothing
    of a person.
    """
    from consumer.adapters.kafka.letters import parse_place
    from consumer.commands.dead_letters.showing import ShowLetterOptions, run_show

    try:
        found = parse_place(place)
    except ValueError as error:
        raise UsageError(str(error)) from None
    run_show(ShowLetterOptions(found, payload, as_json), os.environ)


@dead_letters.command()
@_filtered
@click.option("--max", "most", type=click.IntRange(min=1), metavar="N", help="Redrive at most N letters.")
@click.option("--rate", metavar="N/s", help="How many a second at most: 100/s, 6000/m. Default: no limit.")
@click.option(
    "--max-trips",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Leave letters of records that were redriven so often already: they would go in circles.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be done.")
@_JSON
def redrive(
    topics: tuple[str, ...],
    stages: Any,
    codes: Any,
    since: str | None,
    until: str | None,
    origins: Any,
    most: int | None,
    rate: str | None,
    max_trips: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take letters through the pipeline once more, straight to the platform.

    Nothing is written to the topic that they are from: its other readers do not see them again. A letter is marked as
    done on the dead-letter topic once it is settled; what dies again becomes a letter again, in one Kafka transaction
    with that mark. So a redrive that was interrupted, or killed, is simply run again: what was delivered within
    PINSTREAM_DEDUP_WINDOW is known, and only what was on its way to the platform when it was killed may be sent again.
    What comes onto the dead-letter topic meanwhile is not touched. Exit code 1: interrupted, or it could not go on.

    Needs the settings of `pinstream run`, with its key store: run it on the same machine, or with a shared one. A dry
    run needs only the KAFKA_… settings.

    Events that happened more than an hour ago count as offline at the platform when they arrive. It does not
    deduplicate those: one that goes twice is counted twice.

    \b
    pinstream dead-letters redrive --topic orders --code unknown_currency --dry-run
    pinstream dead-letters redrive --origin orders:3:1200
    """
    from consumer.commands.dead_letters.choosing import RedriveOptions
    from consumer.commands.dead_letters.redrive import run_redrive
    from consumer.commands.parsing import parse_rate

    filters = _filters(stages, codes, since, until, origins)
    options = RedriveOptions(topics, filters, most, parse_rate(rate), max_trips, dry_run, as_json)
    run_redrive(options, os.environ)
