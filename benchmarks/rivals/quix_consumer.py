"""The same job in Quix Streams: a streaming dataframe with a batching sink, committed after the API's answer.

Runs in ``.venv-bench``. Arguments: broker, topic, group, URL of the API, schema file, state folder. A checkpoint is
made every 4000 records, so that with the benchmark's four partitions a sink's batch is of about 1000.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import requests
from quixstreams import Application
from quixstreams.sinks.base import BatchingSink, SinkBatch

from benchmarks.rivals.conversion import conversion

_BATCH = 1000
_CHECKPOINT_RECORDS = 4000
_CHECKPOINT_SECONDS = 0.5


class _Api(BatchingSink):  # type: ignore[misc]
    """Sends a checkpoint's events in calls of at most 1000, one after the other."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = f"{url}/ad_accounts/1/events"
        self._session = requests.Session()

    def write(self, batch: SinkBatch) -> None:
        """Take one partition's events of a checkpoint."""
        for chunk in batch.iter_chunks(_BATCH):
            events: list[Any] = [item.value for item in chunk]
            answer = self._session.post(self._url, json={"data": events}, timeout=30).json()
            if answer["num_events_processed"] != len(events):
                raise RuntimeError("not all processed")


def main(bootstrap: str, topic: str, group: str, url: str, schema: str, state: str) -> None:
    """Consume until SIGTERM."""
    convert = conversion(Path(schema))
    app = Application(
        bootstrap,
        consumer_group=group,
        auto_offset_reset="earliest",
        commit_every=_CHECKPOINT_RECORDS,
        commit_interval=_CHECKPOINT_SECONDS,
        state_dir=state,
        auto_create_topics=False,
        loglevel="ERROR",
    )
    frame = app.dataframe(app.topic(topic, key_deserializer="bytes", value_deserializer="bytes"))
    frame.apply(convert).sink(_Api(url))
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:7])
