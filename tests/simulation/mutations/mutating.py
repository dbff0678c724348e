"""Where deliberate bugs in the core enter themselves; `mutations` has them all.

Theory of operation. A mutation replaces one function or attribute of the core with one that has a bug somebody
really had (docs/why.md), or could have here. It takes a `MonkeyPatch`, so that it is undone after its test. What
catches it does not matter, only that something does, soon.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

Mutation = Callable[[pytest.MonkeyPatch], None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(make: Mutation) -> Mutation:
    """Register a mutation under its function's name."""
    MUTATIONS[make.__name__] = make
    return make
