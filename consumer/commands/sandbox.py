"""``pinstream sandbox``: the sandbox of the Conversions API alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import click

from consumer.app.ending import on_stop_signal
from consumer.commands.base import DebugCommand, asynchronous, flag_option, repeatable, say
from consumer.demo.api import Sandbox
from consumer.demo.faults import DEMO_FAULTS, Faults


@click.command(cls=DebugCommand)
# Loopback, because anybody who reaches it may send.
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes any free port."
)
@click.option("--token", default="sandbox", show_default=True, help="The access token that it accepts.")
@repeatable("--account", "accounts", help="Ad account that exists; may be repeated. Default: any.")
@repeatable(
    "--own-event",
    "own_events",
    metavar="NAME",
    help="Registered event name, in addition to the standard ones; may be repeated.",
)
@flag_option("--faults", help="Misbehave: 429, 5xx, slow and dropped answers.")
@flag_option("--any-age", help="Also accept events older than 7 days, to try out old orders.")
@click.option("--seed", type=int, default=1, show_default=True)
@asynchronous
async def sandbox(
    host: str, port: int, accounts: Sequence[str], faults: bool, any_age: bool, **others: Any
) -> None:
    """Run a strict sandbox of the Conversions API, for development and load tests, until Ctrl-C.

    It refuses events that the API refuses, answers for each event, and counts the accepted ones: GET /sandbox/counts.
    """
    # The same faults as in the demo, so that its effects can be reproduced.
    misbehaving = DEMO_FAULTS if faults else Faults()
    server = Sandbox(accounts=accounts or None, faults=misbehaving, check_age=not any_age, **others)
    stopped = asyncio.Event()
    on_stop_signal(stopped.set)
    # The server starts before the line is printed: a script that waits for the line may call at once.
    url = await server.start(host, port)
    say(
        f"sandbox of the Conversions API: PINTEREST_API_URL={url}   counts: {url.removesuffix('/v5')}/sandbox/counts"
    )
    try:
        # Until Ctrl-C or SIGTERM.
        await stopped.wait()
    finally:
        await server.stop()
    counts = server.memory.counts
    say(f"accepted {counts.accepted_events:,} events, {counts.distinct_event_ids:,} distinct")
