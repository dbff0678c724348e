"""The number of workers, and each worker's share of the budgets.

Each worker gets a part of the budgets, and the parts add up. Settings that cannot be divided are refused before
anything starts. Settings that are not sums (the linger, the dedup window, the limit of the shared key store) stay. So
does the quota: workers divide it as all members of the group do (`consumer.engine.sending.gate.Quota`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import SecretStr

from consumer.errors import SettingsError, UsageError
from consumer.settings import PinstreamSettings, Settings

AUTO = "auto"
MAX_WORKERS = 256
_INSTANCE = "group.instance.id"
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def worker_count(text: str, settings: Settings, cpu_max: Path = _CPU_MAX) -> int:
    """Return the number of workers that ``--workers TEXT`` asks for. Raises `UsageError`."""
    if text == AUTO:
        # Never a number that `check_divisible` would refuse: ``auto`` must work on a machine with many cores.
        return min(cores(cpu_max), MAX_WORKERS, *(maximum for maximum, _ in _limits(settings.pinstream, 1)))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_WORKERS:
        raise UsageError(
            f"--workers {text!r}: give a number from 1 to {MAX_WORKERS}, or auto: one for each core"
        )
    return int(text)


def cores(cpu_max: Path = _CPU_MAX) -> int:
    """Return the number of cores that CPU affinity and the container's limit allow, rounded down."""
    # Not every system has affinity (macOS).
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_max.read_text("ascii").split()
        limit = int(quota) // int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max": no limit
        return available
    return max(1, min(available, limit))


def part(whole: int, number: int, count: int) -> int:
    """Return the part of `whole` for worker `number` of `count`. The parts add up and differ by at most one."""
    return whole // count + (number <= whole % count)


def worker_settings(settings: Settings, number: int, count: int) -> Settings:
    """Return the settings of worker `number` of `count` (from 1)."""
    own = settings.pinstream
    # They are set for this machine: N workers must not multiply them.
    parts = ["concurrency", "max_open_events", "max_open_bytes"]
    divided = {name: part(getattr(own, name), number, count) for name in parts}
    kafka = settings.kafka
    instance = kafka.properties.get(_INSTANCE)
    if instance is not None:
        # Two members with the same name would fence each other out of the group.
        name = SecretStr(f"{instance.get_secret_value()}-{number}")
        kafka = kafka.model_copy(update={"properties": {**kafka.properties, _INSTANCE: name}})
    update = {"pinstream": own.model_copy(update=divided), "kafka": kafka, "workers": count}
    return settings.model_copy(update=update)


def check_divisible(settings: Settings, count: int) -> None:
    """Check that the settings can be divided among `count` workers. Raises `SettingsError`."""
    if count == 1:
        return
    own = settings.pinstream
    if own.key_store.get_secret_value() == "memory:":
        # Each process would have a memory of its own.
        raise SettingsError(
            f"PINSTREAM_KEY_STORE=memory: is not shared by --workers {count}: events that one worker has delivered, the"
            " others would send again; use disk:/path (on a tmpfs, if it must not touch a disk), or run one worker"
        )
    for maximum, why in _limits(own, count):
        if count > maximum:
            raise SettingsError(why)


def _limits(own: PinstreamSettings, count: int) -> Iterator[tuple[int, str]]:
    """Yield the largest number of workers that a setting allows, and why `count` is refused if it is larger."""
    needs_one = {"CONCURRENCY": own.concurrency, "CALLS_PER_MINUTE": own.calls_per_minute}
    if own.shares_key_store:
        # It counts the calls of all, so that each may have what the others leave.
        del needs_one["CALLS_PER_MINUTE"]
    for name, whole in needs_one.items():
        yield (
            whole,
            f"PINSTREAM_{name}={whole} is below --workers {count}: it is shared by all of them, and each needs at"
            " least 1; raise the first or lower the second",
        )
    whole, batch = own.max_open_events, own.batch_events
    yield (
        whole // batch,
        f"PINSTREAM_MAX_OPEN_EVENTS={whole} is {whole // count} for each of --workers {count}, below"
        f" PINSTREAM_BATCH_EVENTS={batch}: no batch could ever fill; raise the first, or lower one of the others",
    )
