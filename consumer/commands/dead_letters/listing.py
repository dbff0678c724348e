"""``pinstream dead-letters list``: count letters by origin and reason, waiting and done; and show the latest of them.

Only headers are read, never a key or a value.
"""

from __future__ import annotations

import contextlib
import heapq
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from consumer.adapters.kafka.letters import Place
from consumer.commands.base import DebugCommand, asynchronous, iso
from consumer.commands.dead_letters.options import Filters, filter_options
from consumer.commands.dead_letters.reading import DONE, WAITING, DeadLetters, facts, find
from consumer.commands.parsing import JSON_OPTION
from consumer.commands.results import print_result, prose, table
from consumer.settings import load

# Most rows: codes are the platform's, and a hostile topic may hold any number of them.
MAX_KINDS = 10_000
_OTHERS = ("(others)",) * 3
_ANY_WIDTH = 10_000


@click.command(name="list", cls=DebugCommand)
@filter_options
@click.option(
    "--latest",
    type=click.IntRange(0, 1000),
    default=10,
    show_default=True,
    help="How many of the latest to show.",
)
@JSON_OPTION
@asynchronous
async def list_letters(topics: tuple[str, ...], filters: Filters, latest: int, as_json: bool) -> None:
    """Count letters by topic, stage and code, and show the latest; never a key or a value.

    waiting: not redriven yet; done: redriven. Needs only the KAFKA_… settings.
    """
    settings = load(os.environ, needs=("kafka",))
    found, missing = await find(settings, topics, filters)
    document = {**await read_listing(found, latest), "no_dead_letters": missing}
    print_result(print_listing, document, as_json=as_json)


async def read_listing(topics: Sequence[DeadLetters], maximum: int) -> dict[str, Any]:
    """Read the topics. Return the JSON form: counts, and the headers of the `maximum` latest letters."""
    counts: dict[tuple[str, str, str], dict[str, int]] = {}
    # A heap, the oldest first.
    latest: list[tuple[int, Place, dict[str, Any]]] = []
    for topic in topics:
        await topic.begin()
        async with contextlib.aclosing(topic.letters("counting")) as letters:
            async for letter in letters:
                done = topic.is_done(letter)
                # The code comes from a header, so anyone who may write to the topic chooses it.
                kind = letter.origin.topic, letter.stage.value, letter.code
                if kind not in counts and len(counts) >= MAX_KINDS:
                    kind = _OTHERS
                first = {WAITING: 0, DONE: 0, "oldest": letter.at_ms, "latest": letter.at_ms}
                count = counts.setdefault(kind, first)
                count[DONE if done else WAITING] += 1
                count["oldest"] = min(count["oldest"], letter.at_ms)
                count["latest"] = max(count["latest"], letter.at_ms)
                # Letters of the same millisecond are ordered by their place, so that every run prints the same.
                key = (letter.at_ms, letter.place)
                if maximum and (len(latest) < maximum or key > latest[0][:2]):
                    # Only the headers' facts are kept, however large the letters are.
                    heapq.heappush(latest, (*key, facts(letter, done)))
                    if len(latest) > maximum:
                        heapq.heappop(latest)
    return {
        **{state: sum(count[state] for count in counts.values()) for state in (WAITING, DONE)},
        "counts": [
            {
                **dict(zip(("topic", "stage", "code"), kind, strict=True)),
                **count,
                "oldest": iso(count["oldest"]),
                "latest": iso(count["latest"]),
            }
            for kind, count in sorted(counts.items())
        ],
        "latest": [one for _, _, one in sorted(latest, reverse=True)],
        "foreign": sum(topic.tally.foreign for topic in topics),
        "elsewhere": sum(topic.tally.elsewhere for topic in topics),
    }


def print_listing(document: Mapping[str, Any], console: Console) -> None:
    """Print the listing for people."""
    for topic in document["no_dead_letters"]:
        prose(console, f"{topic}: no dead letters")
    if document["counts"]:
        _print_counts(document["counts"], console)
    elif not document["no_dead_letters"] or document["foreign"]:
        prose(console, "no dead letters that match")
    if document["foreign"]:
        prose(console, f"and {document['foreign']:,} other records that are no letters of these topics")
    if document["elsewhere"]:
        prose(console, f"marks of another cluster: {document['elsewhere']:,} (not believed here)")
    if document["latest"]:
        prose(console, "the latest", "italic")
    for one in document["latest"]:
        # The first line begins with the place, unbroken: people copy it for `show`.
        times = f"trips: {one['trips']}, attempts: {one['attempts']}"
        tried = [times] if one["trips"] or one["attempts"] else []
        prose(console, "  ".join([one["place"], _short(one["at"]), one["state"], *tried]), "bold")
        prose(console, f"  {one['stage']}: {one['code']}, from {one['origin']}")
        console.print(Padding(escape(one["message"]), (0, 0, 0, 2)), highlight=False, style="dim")


def _print_counts(counts: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Print a table; if a name that people copy, or a number, would be broken, a few lines for each kind."""
    rows = [
        [one["topic"], one["stage"], one["code"], f"{one['waiting']:,}", f"{one['done']:,}"]
        + [_short(one[moment]) for moment in ("oldest", "latest")]
        for one in counts
    ]
    heads = ("topic", "stage", "code", f">{WAITING}", f">{DONE}", "oldest", "latest")
    made = table(*heads, rows=rows, title="dead letters", padding=0)
    # Only a time may be broken, between day and second. (What is measured is never wider than its room.)
    if console.measure(made, options=console.options.update_width(_ANY_WIDTH)).minimum <= console.width:
        for column in made.columns[:5]:
            column.no_wrap = True
        console.print(made)
        return
    prose(console, "dead letters", "italic")
    for topic, stage, code, waiting, done, _, latest in rows:
        prose(console, topic, "bold")
        prose(console, f"  {stage}: {code}")
        prose(console, f"  waiting: {waiting}, done: {done}, latest: {latest}")


def _short(moment: str | None) -> str:
    """Rewrite the result of `iso` as ``2026-11-24 12:00:00``, which can be broken between day and time."""
    return (moment or "?").replace("T", " ").replace("Z", "")
