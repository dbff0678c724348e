"""What a figure is: its sentence, its path in /status, its metric, and how workers' figures are merged.

A figure is a field of a snapshot, or is worked out from fields; then the docstring of its method is its sentence::

    claims: int = figure("Event keys that open events hold.", "pinstream_claims", path="open.claims")

    @derived(metric="pinstream_records_open")
    def open(self) -> int:
        '''Records read and not yet settled.'''

All users go over `figures_of`: `consumer.web.status` makes the document, `consumer.web.metrics` the families, both make
the tables of docs/status.md, and `merged` merges the snapshots of workers. Units are in the names, as
Prometheus wants them.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import partial
from itertools import accumulate, chain
from types import NoneType, UnionType
from typing import (
    Any,
    Generic,
    NamedTuple,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

_T = TypeVar("_T")


class Figure(NamedTuple):
    """The definition of one figure."""

    sentence: str = ""
    """What the figure is, in plain text: for the page in docs/, and as the help of the metric."""
    metric: str = ""
    """The metric's name on /metrics, as Prometheus shows it (``_total``: a counter); empty: there is no metric."""
    path: str | None = None
    """The figure's path in /status, below the object that it is in; None: its name; empty: not in /status.
    ``[]`` marks an array; ``.``: the figures of this object are in the object around it."""
    keys: tuple[str, ...] = ()
    """The meaning of the names in its values: in /status they follow its path, on /metrics they are labels."""
    status_note: str = ""
    """What the page adds for /status (Markdown): what null means, where to look."""
    labels: tuple[str, ...] = ()
    """The metric's labels, if they are not `keys`."""
    metric_note: str = ""
    """What the metric's help adds: what 0 or 1 mean."""
    is_label: bool = False
    """True if it names the item of an array that it is in: a label of all metrics of that item."""
    show: Callable[[Any], Any] | None = None
    """Makes the value in /status."""
    number: Callable[[Any], Any] | None = None
    """Makes the metric's value: a number, numbers by label, or None for no series."""
    merge: Callable[[Sequence[Any]], Any] | None = None
    """Merges the values of several workers, or of none; None: they are added."""


def figure(
    sentence: str = "",
    metric: str = "",
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    **more: Any,
) -> Any:
    """A field of a snapshot that is a figure; `more` is what `Figure` takes."""
    about = {_FIGURE: Figure(sentence, metric, **more)}
    return field(default=default, default_factory=default_factory, metadata=about)


number = partial(figure, default=0)
counts = partial(figure, default_factory=Counter)
_FIGURE = "figure"


@dataclass_transform(frozen_default=True, field_specifiers=(figure,))
def snapshot(cls: type[_T]) -> type[_T]:
    """Make a class a frozen dataclass: a snapshot, or a part of one."""
    return dataclass(frozen=True, slots=True)(cls)


def copied(counting: _T) -> _T:
    """Return a copy of a dataclass whose counts continue; the copy does not change any more."""
    return type(counting)(**{name: copy(value) for name, value in vars(counting).items()})


@dataclass(frozen=True)
class Derived(Generic[_T]):
    """A property of a snapshot that is a figure; `of` works it out."""

    of: Callable[[Any], _T]
    figure: Figure

    def __get__(self, owner: object, _: type) -> _T:
        return self.of(owner)


def derived(path: str = "", **more: Any) -> Callable[[Callable[[Any], _T]], Derived[_T]]:
    """Make a method a property that is a figure; `more` is what `Figure` takes. Its docstring is the sentence."""
    return lambda of: Derived(of, Figure(" ".join((of.__doc__ or "").split()), path=path, **more))


class Histogram(NamedTuple):
    """`counts` of values that were at most each of `bounds`, the last of which is infinity; `total` of all values."""

    bounds: Sequence[float]
    counts: Sequence[int]
    total: float


def buckets(bounds: Sequence[float]) -> Any:
    """A field of a snapshot with how many values are in each bucket, of which these are the upper bounds."""
    zero = (0,) * len(bounds)
    return figure(
        path="", default=zero, merge=lambda several: tuple(map(sum, zip(zero, *several, strict=True)))
    )


def quantile(share: float, bounds: Sequence[float], sentence: str, **more: Any) -> Derived[float | None]:
    """A quantile of a snapshot's `buckets`: the upper bound of the bucket that it is in; None if there is nothing, or
    no bound."""

    def of(owner: Any) -> float | None:
        seen = [*accumulate(owner.buckets)]
        bound = bounds[bisect_left(seen, share * seen[-1])]
        return bound if seen[-1] and bound < math.inf else None

    return Derived(of, Figure(sentence, **more))


class ValueType(NamedTuple):
    """The type of a value: `item`, or also None if `optional`; a sequence of items, or a mapping to them, if `many`."""

    item: type
    optional: bool
    many: bool


class Attribute(NamedTuple):
    """An attribute of a snapshot that is a figure: a field, or derived from fields."""

    name: str
    shape: ValueType
    figure: Figure
    path: str
    """Its path in /status, with ``{…}`` for names that are data; empty: not in /status."""
    is_field: bool


_KNOWN: dict[type, tuple[Attribute, ...]] = {}


def figures_of(owner: type) -> tuple[Attribute, ...]:
    """Return the figures of a snapshot's type, fields first; any other type has none."""
    if not is_dataclass(owner):
        return ()
    # Found once for each type, because resolving type hints is slow, and /metrics asks for every item of a list.
    if owner not in _KNOWN:
        hints = get_type_hints(owner)
        found = [(one.name, hints[one.name], one.metadata.get(_FIGURE), True) for one in fields(owner)]
        for name, value in vars(owner).items():
            if isinstance(value, Derived):
                found.append((name, get_type_hints(value.of)["return"], value.figure, False))
        known = []
        for name, hint, about, is_field in found:
            if about is not None:
                path = [name if about.path is None else about.path, *(f"{{{key}}}" for key in about.keys)]
                known.append(Attribute(name, _shape(hint), about, ".".join(path), is_field))
        _KNOWN[owner] = tuple(known)
    return _KNOWN[owner]


def _shape(hint: Any) -> ValueType:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        # A figure is of one type, and None where it is unknown.
        [some] = [one for one in args if one is not NoneType]
        return _shape(some)._replace(optional=True)
    if origin is Counter:  # its argument is the type of the names
        return ValueType(int, optional=False, many=True)
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, (Sequence, Mapping))):
        inner = _shape(args[-1] if issubclass(origin, Mapping) else args[0])
        return inner._replace(many=True)
    return ValueType(hint, optional=False, many=False)


# -- merging workers' figures


def merged(owner: type[_T], snapshots: Sequence[_T]) -> _T:
    """Make one snapshot of this type from several, the oldest first, or from none: each figure by its rule."""
    values = {}
    for attribute in figures_of(owner):
        if attribute.is_field:
            of_all = [getattr(one, attribute.name) for one in snapshots]
            # A label names the thing itself, and is the same in all of them.
            rule = first if attribute.figure.is_label else attribute.figure.merge
            values[attribute.name] = _sum(attribute.shape, of_all) if rule is None else rule(of_all)
    return owner(**values)


def by_label(item: type[_T], lists: Iterable[Iterable[_T]]) -> Sequence[list[_T]]:
    """Group the items of workers' lists by their labels: what the workers say of one thing, the oldest first."""
    labels = [one.name for one in figures_of(item) if one.figure.is_label]
    groups: dict[tuple[object, ...], list[_T]] = {}
    for one in chain.from_iterable(lists):
        groups.setdefault(tuple(getattr(one, label) for label in labels), []).append(one)
    return [*groups.values()]


def joined_lists(item: type[_T], lists: Iterable[Iterable[_T]]) -> Sequence[_T]:
    """Make one list of workers' lists: one item for each of its labels."""
    return tuple(merged(item, seen) for seen in by_label(item, lists))


def items(path: str, item: type) -> Any:
    """A field with several of an item, at first none; workers' are merged by its labels."""
    return figure(path=path, default=(), merge=partial(joined_lists, item))


def _sum(shape: ValueType, values: Sequence[Any]) -> Any:
    """Add numbers, also in a row or by name; merge snapshots, also by name, into one."""
    if figures_of(shape.item) and shape.many:
        names = sorted({name for named in values for name in named})
        return {name: merged(shape.item, [one[name] for one in values if name in one]) for name in names}
    if figures_of(shape.item):
        return merged(shape.item, values)
    if not shape.many:
        return sum(values)
    if values and isinstance(values[0], tuple):
        return tuple(map(sum, zip(*values, strict=True)))
    total: Counter[Any] = Counter()
    for one in values:
        total.update(one)
    return total


def _among_known(choose: Callable[..., Any], **how: Any) -> Callable[[Iterable[Any]], Any]:
    """Make a rule that chooses one of the known values; None: none is known."""
    return lambda values: choose((value for value in values if value is not None), default=None, **how)


# Rules for figures that are not added.
maximum = _among_known(max)
least = _among_known(min)
# From 0: two wrong values, as of clocks, must not cancel each other out.
furthest = _among_known(max, key=abs)
first = _among_known(lambda known, default: next(known, default))
