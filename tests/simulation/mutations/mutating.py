"""Where deliberate bugs in the engine enter themselves; `mutations` has them all.

Theory of operation. A mutation replaces one function or attribute of the engine with one that has a bug somebody
really had (docs/why.md), or could have here. It takes a `MonkeyPatch`, so that it is undone after its test. What
catches it does not matter, only that something does, soon. Most are made of what they replace and what they put there;
`mutation` is for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

Mutation = Callable[[pytest.MonkeyPatch], None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(make: Mutation) -> Mutation:
    """Register a mutation under its function's name."""
    MUTATIONS[make.__name__] = make
    return make


def replaced(bug: str, owner: Any, name: str, value: Any) -> None:
    """Register `bug`: `value` in the place of `name` of `owner` (a class, a module or a module's name)."""
    owner = import_module(owner) if isinstance(owner, str) else owner
    MUTATIONS[bug] = lambda patch: patch.setattr(owner, name, value)


def replaces(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Register a function, under its name, as a bug that takes the place of `name` of `owner`."""
    return lambda bug: replaced(bug.__name__, owner, name, bug)


def around(owner: Any, name: str) -> Callable[[Callable[..., Any]], None]:
    """Register a function as `replaces` does; its first argument is what it replaces."""

    def enter(bug: Callable[..., Any]) -> None:
        original = getattr(owner, name)
        replaced(bug.__name__, owner, name, lambda *given, **more: bug(original, *given, **more))

    return enter
