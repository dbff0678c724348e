"""``pinstream run --workers N`` as a process: its workers as /status shows them, its metrics as Prometheus
reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.processes import Process

Series = tuple[str, tuple[tuple[str, str], ...]]


class Supervisor(Process):
    """The supervisor; a context manager: its workers have ended, too, when it exits."""

    def __init__(
        self, folder: Path, count: int, *, env: Mapping[str, str], under: tuple[str, ...] = ()
    ) -> None:
        super().__init__(folder, "run", "--workers", str(count), env=env, under=under)
        self.count = count

    def __exit__(self, *ended: Any) -> None:
        left = [] if self.ended else self.children()
        super().__exit__(*ended)
        # They end by themselves, which a test shows; here, only that none outlives the test.
        for one in psutil.wait_procs(left, 20)[1]:
            one.kill()

    def children(self) -> list[psutil.Process]:
        """Its workers, as the operating system shows them."""
        return psutil.Process(self.pid).children()

    def workers(self) -> list[dict[str, Any]]:
        """Its workers, as /status shows them."""
        rows: list[dict[str, Any]] = self.status()["workers"]
        return rows

    def until_divided(self, partitions: int) -> list[dict[str, Any]]:
        """Wait until all of them have partitions and all partitions are held; return the workers of /status."""

        def divided() -> list[dict[str, Any]]:
            status = self.status()
            rows: list[dict[str, Any]] = status["workers"]
            parts = [row["partitions"] for row in rows]
            shared = all(parts) and sum(parts) == partitions == len(status["partitions"])
            return rows if shared and all(row["state"] == "running" for row in rows) else []

        found: list[dict[str, Any]] = self.until(
            divided, f"{self.count} workers that share {partitions} partitions"
        )
        return found

    def counters(self) -> dict[Series, float]:
        """Every counter on /metrics, where no series may occur twice."""
        code, text = self.get("/metrics")
        assert code == 200
        found: Counter[Series] = Counter()
        values: dict[Series, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series = (sample.name, tuple(sorted(sample.labels.items())))
                found[series] += 1
                if family.type in ("counter", "histogram") and not sample.name.endswith("_created"):
                    values[series] = sample.value
        assert set(found.values()) == {1}, [one for one, times in found.items() if times > 1]
        return values
