"""Prometheus metrics, made from the core's snapshot when they are scraped; nothing is counted twice.

Names and units by Prometheus' conventions (base units, ``_total`` on counters). Labels come from closed or capped
sets, plus topic and partition for what belongs to an assigned partition; its series ends with the assignment. What
families there are stands with the figures themselves (`consumer.engine.figures`); so does the table in docs/status.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from consumer.engine.figures import Figure, Histogram, figures_of
from consumer.engine.statistics import Statistics


class Family(NamedTuple):
    """A metric, as /metrics and the page have it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class StatisticsCollector(Collector):
    """Reads one snapshot for each scrape."""

    def __init__(self, snapshot: Callable[[], Statistics]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """All metric families of now."""
        return collect(Statistics, [self._snapshot()])


def collect(owner: type, snapshots: Iterable[Any]) -> Iterable[Metric]:
    """The families of a type of snapshots, with the series of these; each family is there, with series or without."""
    found = {one.name: _empty(one) for one in families(owner)}
    for snapshot in snapshots:
        for name, labels, value in _series(snapshot, ()):
            _add(found[name], labels, value)
    return found.values()


def families(owner: type, labels: tuple[str, ...] = ()) -> Iterator[Family]:
    """The metrics of a type of snapshots, and of what it consists of."""
    attributes = figures_of(owner)
    mine = (*labels, *(attribute.name for attribute in attributes if attribute.figure.is_label))
    for attribute in attributes:
        figure = attribute.figure
        if figure.metric:
            words = f"{figure.sentence} {figure.metric_note}".strip()
            yield Family(figure.metric, _kind(figure, attribute.shape.item), (*mine, *_labels(figure)), words)
        yield from families(attribute.shape.item, mine)


def metrics_table(*owners: type) -> str:
    """The page's table of the metrics of these types."""
    lines = ["| name | type | labels | what |", "| --- | --- | --- | --- |"]
    for family in (one for owner in owners for one in families(owner)):
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(lines) + "\n"


def _kind(figure: Figure, item: type) -> str:
    if item is Histogram:
        return "histogram"
    return "counter" if figure.metric.endswith("_total") else "gauge"


def _labels(figure: Figure) -> Sequence[str]:
    """Those in the path are in braces."""
    in_path = (part for part in figure.status.split(".") if part.startswith("{"))
    return figure.labels or [part.strip("{}").replace(" ", "_") for part in in_path]


def _empty(family: Family) -> Metric:
    if family.kind == "histogram":
        return HistogramMetricFamily(family.name, family.help, labels=family.labels)
    made = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    return made(family.name.removesuffix("_total"), family.help, labels=family.labels)


def _series(owner: object, labels: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Of a snapshot, or of a part of one with these labels: metric, labels, value."""
    attributes = figures_of(type(owner))
    mine = (
        *labels,
        *(str(getattr(owner, attribute.name)) for attribute in attributes if attribute.figure.is_label),
    )
    for attribute in attributes:
        figure, value = attribute.figure, getattr(owner, attribute.name)
        if figure.metric:
            number = value if figure.number is None else figure.number(value)
            for names, one in _by_label(number):
                yield figure.metric, (*mine, *names), one
        for part in value if attribute.shape.many and not isinstance(value, Mapping) else (value,):
            yield from _series(part, mine)


def _by_label(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What is not known has no series."""
    if isinstance(value, Mapping):
        for names, one in sorted(value.items()):
            for _, number in _by_label(one):
                yield (names if isinstance(names, tuple) else (names,)), number
    elif value is not None:
        yield (), value


def _add(family: Metric, labels: tuple[str, ...], value: Any) -> None:
    if isinstance(value, Histogram):
        bounds = ["+Inf" if bound == math.inf else str(bound) for bound in value.bounds]
        family.add_metric(labels, [*zip(bounds, value.counts, strict=True)], value.total)  # type: ignore[attr-defined]
    else:
        family.add_metric(labels, int(value) if isinstance(value, bool) else value)  # type: ignore[attr-defined]
