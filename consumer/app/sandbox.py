"""``pinstream sandbox``: the stand-in for the Conversions API alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import click

from consumer.app.signals import on_stop_signal
from consumer.sandbox.api import Sandbox
from consumer.sandbox.faults import DEMO_FAULTS, Faults


def run_sandbox(
    *, host: str, port: int, token: str, accounts: Sequence[str], faults: bool, seed: int
) -> None:
    """Serve until SIGTERM or SIGINT."""
    server = Sandbox(
        token=token, accounts=accounts or None, faults=DEMO_FAULTS if faults else Faults(), seed=seed
    )
    asyncio.run(_serve(server, host, port))


async def _serve(server: Sandbox, host: str, port: int) -> None:
    stopped = asyncio.Event()
    on_stop_signal(stopped.set)
    url = await server.start(host, port)
    click.echo(
        f"sandbox of the Conversions API: PINTEREST_API_URL={url}, counts at {url[:-3]}/sandbox/counts",
        err=True,
    )
    try:
        await stopped.wait()
    finally:
        await server.stop()
