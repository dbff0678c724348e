"""What is said of a figure, once: its sentence, its path in /status, its name on /metrics, how workers' are merged.

A figure is a field of a snapshot (or a property, where it is worked out from fields), and its `Figure` stands in that
field's annotation::

    claims: Annotated[int, Figure("open.claims", "Event keys that open events hold.", "pinstream_claims")]

All who need one walk over `figures_of`: `consumer.web.status` makes the document, `consumer.web.metrics` the families,
both the tables of docs/status.md, and `consumer.workers.merging` adds the workers' snapshots. Types are those of the
annotations; units are in the names, as Prometheus wants them.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


class Figure(NamedTuple):
    """What is said of one figure."""

    status: str = ""
    """Its path in /status, from the object it stands in; empty: it is not there. ``[]`` marks an array, ``{…}`` names
    that are data; ``.``: its own figures stand in the same object."""
    sentence: str = ""
    """What it is, in plain text: for the page in docs/, and as the help of the metric."""
    metric: str = ""
    """Its name on /metrics, as Prometheus shows it (``_total``: a counter); empty: it is not there."""
    status_note: str = ""
    """What the page adds of /status (Markdown): what null means, where to look."""
    labels: tuple[str, ...] = ()
    """The metric's labels; without any, those names in `status` that are data."""
    metric_note: str = ""
    """What the metric's help adds: what 0 or 1 mean."""
    is_label: bool = False
    """It names the item of an array that it stands in: a label of all metrics of that item."""
    show: Callable[[Any], Any] | None = None
    """Makes the value of /status."""
    number: Callable[[Any], Any] | None = None
    """Makes the value of the metric: a number, numbers by label, or None for no series."""
    merge: Callable[[Sequence[Any]], Any] | None = None
    """Makes one of those of several workers (or of none); None: they are added."""


class Histogram(NamedTuple):
    """`counts` of what was at most each of `bounds`, the last of which is infinity; `total` of all values."""

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


class Attribute(NamedTuple):
    """An attribute of a snapshot that is a figure: a field, or a property."""

    name: str
    shape: Shape
    figure: Figure
    is_field: bool


_FIGURES: dict[type, tuple[Attribute, ...]] = {}


class Shape(NamedTuple):
    """The type of a value: `item`, or None if `optional`; a sequence of them, or a mapping to them, if `many`."""

    item: type
    optional: bool
    many: bool


def figures_of(owner: type) -> tuple[Attribute, ...]:
    """The figures of a snapshot's type, fields first; those of anything else: none."""
    if owner not in _FIGURES:
        _FIGURES[owner] = _read_figures(owner)
    return _FIGURES[owner]


def _read_figures(owner: type) -> tuple[Attribute, ...]:
    # The names of the module, also for what functions in an annotation use later.
    names = vars(sys.modules[owner.__module__])
    annotations = get_type_hints(owner, names, {}, include_extras=True)
    hints = {name: (hint, True) for name, hint in annotations.items()}
    for name, value in vars(owner).items():
        if isinstance(value, property):
            hints[name] = get_type_hints(value.fget, include_extras=True)["return"], False
    return tuple(
        Attribute(name, _shape(get_args(hint)[0]), said, is_field)
        for name, (hint, is_field) in hints.items()
        if get_origin(hint) is Annotated
        for said in hint.__metadata__
        if isinstance(said, Figure)
    )


def _shape(hint: Any) -> Shape:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        [some] = [one for one in args if one is not NoneType]
        return _shape(some)._replace(optional=True)
    if origin is Counter:
        return Shape(int, optional=False, many=True)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, (Sequence, Mapping))):
        inner = _shape(args[-1] if issubclass(origin, Mapping) else args[0])
        return inner._replace(many=True)
    return Shape(hint, optional=False, many=False)


# -- rules for merging workers' figures that are not added


def most(values: Iterable[_T | None]) -> Any:
    """The most of what is known."""
    return max((value for value in values if value is not None), default=None)  # type: ignore[type-var]


def least(values: Iterable[_T | None]) -> Any:
    """The least of what is known."""
    return min((value for value in values if value is not None), default=None)  # type: ignore[type-var]


def furthest(values: Iterable[float | None]) -> Any:
    """The one furthest from 0, of what is known: two that are wrong must not look right together."""
    return max((value for value in values if value is not None), key=abs, default=None)


def first(values: Iterable[_T | None]) -> _T | None:
    """Any that is known."""
    return next((value for value in values if value is not None), None)


def every(values: Sequence[bool]) -> bool:
    """Whether it is so of all, and there are any."""
    return bool(values) and all(values)


def rounded_share(share: float | None) -> float | None:
    """Rounded down: 1 means all of them."""
    return None if share is None else math.floor(share * 1_000_000) / 1_000_000
