"""``pinstream sandbox``: the stand-in for the Conversions API alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from consumer.app.records import say
from consumer.app.signals import on_stop_signal
from consumer.demo.api import Sandbox, serve_sandbox
from consumer.demo.faults import DEMO_FAULTS, Faults


def run_sandbox(
    *,
    host: str,
    port: int,
    token: str,
    accounts: Sequence[str],
    own_events: Sequence[str],
    faults: bool,
    any_age: bool,
    seed: int,
) -> None:
    """Serve until SIGTERM or SIGINT; say what was counted. Raises `UsageError` if it cannot listen there."""
    server = Sandbox(
        token=token,
        accounts=accounts or None,
        faults=DEMO_FAULTS if faults else Faults(),
        check_age=not any_age,
        seed=seed,
        own_events=own_events,
    )
    asyncio.run(_serve(server, host, port))


async def _serve(server: Sandbox, host: str, port: int) -> None:
    stopped = asyncio.Event()
    on_stop_signal(stopped.set)
    counts = await serve_sandbox(server, host=host, port=port, stop=stopped, announce=_announce)
    say(f"accepted {counts.accepted_events:,} events, {counts.distinct_event_ids or 0:,} distinct")


def _announce(url: str) -> None:
    say(
        f"sandbox of the Conversions API: PINTEREST_API_URL={url}   counts: {url.removesuffix('/v5')}/sandbox/counts"
    )
