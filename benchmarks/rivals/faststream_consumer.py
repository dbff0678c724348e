"""The same job in FastStream: a batch subscriber over confluent-kafka that acknowledges after the API's answer.

Runs in ``.venv-bench``. Arguments: broker, topic, group, URL of the API, schema file. Types are not applied
(``apply_types=False``): validating what is bytes would only cost.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path
from typing import Any

import aiohttp
from faststream import AckPolicy, FastStream
from faststream.confluent import KafkaBroker

from benchmarks.rivals.conversion import conversion

_BATCH = 1000


async def _as_it_is(message: Any) -> Any:
    """The body undecoded: it is Avro, and FastStream would try to read it as JSON."""
    return message.body


def application(bootstrap: str, topic: str, group: str, url: str, schema: str) -> FastStream:
    """The application; `run` consumes until SIGTERM."""
    convert = conversion(Path(schema))
    broker = KafkaBroker(bootstrap, apply_types=False, logger=None)
    sessions: list[aiohttp.ClientSession] = []

    @broker.subscriber(  # type: ignore[untyped-decorator,unused-ignore]
        topic,
        group_id=group,
        auto_offset_reset="earliest",
        batch=True,
        max_records=_BATCH,
        decoder=_as_it_is,
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def handle(values: list[bytes]) -> None:
        if not sessions:
            sessions.append(aiohttp.ClientSession())
        events = [convert(value) for value in values]
        async with sessions[0].post(f"{url}/ad_accounts/1/events", json={"data": events}) as response:
            answer = await response.json()
            if answer["num_events_processed"] != len(events):
                raise RuntimeError("not all processed")

    app = FastStream(broker, logger=None)

    @app.after_shutdown  # type: ignore[untyped-decorator,unused-ignore]
    async def close() -> None:
        for session in sessions:
            await session.close()

    return app


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    asyncio.run(application(*sys.argv[1:6]).run())
