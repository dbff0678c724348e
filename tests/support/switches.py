"""``python -m tests.support.switches ARGUMENTS``: the product with other values of what is no setting.

``SWITCHES`` in its environment (`switched`) says which: fields of the engine's `Policy`, such as ``commit_interval``;
``"compiled": false`` for a package that was built without a C compiler, where every record takes the two steps;
``longest_wait``, for how many seconds a backoff waits at most; ``count_every``, how often a member asks who is in
its group; and ``"macos": true`` for a system that lacks what macOS lacks. The processes of ``--workers`` have
the product's own values.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

_VARIABLE = "SWITCHES"
MACOS_LACKS = ("fdatasync", "posix_fadvise", "sched_getaffinity")
"""Functions of ``os`` that the product would like."""


def switched(**values: float) -> dict[str, str]:
    """The environment that makes `end_to_end.processes` start this module with these values."""
    return {_VARIABLE: json.dumps(values)}


def apply() -> None:
    """Set the values that the environment has."""
    values: dict[str, Any] = json.loads(os.environ.get(_VARIABLE, "{}"))
    if values.pop("macos", False):
        for name in MACOS_LACKS:
            delattr(os, name)
    from consumer.adapters.kafka import groups
    from consumer.app import building
    from consumer.engine.model import Policy

    vars(groups)["_COUNT_EVERY"] = values.pop("count_every", 10.0)
    if not values.pop("compiled", True):
        vars(building)["COMPILED"] = None
    if longest := values.pop("longest_wait", None):
        for name in ("delivery_backoff", "inner_backoff", "probe_backoff"):
            values[name] = replace(getattr(Policy(), name), cap=longest)
    made = building.policy
    building.policy = lambda *given: replace(made(*given), **values)


if __name__ == "__main__":
    apply()
    from consumer.__main__ import enter

    enter()
