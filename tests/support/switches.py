"""``python -m tests.support.switches ARGUMENTS``: the product with other values of what is no setting.

``SWITCHES`` in its environment (`switched`) says which: fields of the engine's `Policy`, such as ``commit_interval``;
``"compiled": false`` for a package that was built without a C compiler, where every record takes the two steps; and
``minute``, for how many seconds a call counts against the quota.
The processes of ``--workers`` have the product's own values.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

_VARIABLE = "SWITCHES"


def switched(**values: float) -> dict[str, str]:
    """The environment that makes `end_to_end.processes` start this module with these values."""
    return {_VARIABLE: json.dumps(values)}


def apply() -> None:
    """Set the values that the environment has."""
    values: dict[str, Any] = json.loads(os.environ.get(_VARIABLE, "{}"))
    from consumer.app import building
    from consumer.engine.sending import gate

    vars(gate)["_MINUTE"] = values.pop("minute", 60.0)
    if not values.pop("compiled", True):
        vars(building)["COMPILED"] = None
    made = building.policy
    building.policy = lambda *given: replace(made(*given), **values)


if __name__ == "__main__":
    apply()
    from consumer.__main__ import enter

    enter()
