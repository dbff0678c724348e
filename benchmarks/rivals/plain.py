"""The plain consumer: the same job written the usual way with confluent-kafka and aiohttp.

It sends batches of 1000 and commits after each. Arguments: broker, topic, group, URL of the API, schema file, and for
another schema than the product's own the file with its mapping.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import aiohttp
from confluent_kafka import Consumer

from benchmarks.rivals import conversion, mapped

_BATCH = 1000


async def main(bootstrap: str, topic: str, group: str, url: str, schema: str, mapping: str = "") -> None:
    """Consume `topic` for ever."""
    convert = conversion.conversion(Path(schema))
    if mapping:
        convert = mapped.conversion(Path(schema), Path(mapping))
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([topic])
    async with aiohttp.ClientSession() as session:
        while True:
            messages = await asyncio.to_thread(consumer.consume, _BATCH, 0.1)
            events = []
            for message in messages:
                value = message.value()
                if message.error() or not isinstance(value, bytes):
                    continue
                events.append(convert(value))
            if not events:
                continue
            async with session.post(f"{url}/ad_accounts/1/events", json={"data": events}) as response:
                answer = await response.json()
                if answer["num_events_processed"] != len(events):
                    raise RuntimeError("not all processed")
            await asyncio.to_thread(consumer.commit, asynchronous=False)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
