"""Prometheus metrics, made from the engine's snapshot when they are scraped; nothing is counted twice.

`gather` returns what `FiguresCollector` shows on /metrics and `consumer.app.telemetry.metrics` exports by OTLP. Names
and units follow Prometheus' conventions (base units, ``_total`` on counters). Labels come from closed or capped sets,
plus topic and partition for an assigned partition, whose series end with the assignment. The figures themselves define
the families (`figures.definitions`), from which the table in docs/status.md is made as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from consumer.engine.figures.definitions import Histogram, figures_of


class Family(NamedTuple):
    """A metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


@dataclass(eq=False)
class FiguresCollector(Collector):
    """Collects the figures of the snapshots of one type, which are taken for each scrape."""

    owner: type
    snapshots: Callable[[], Iterable[Any]]

    def collect(self) -> Iterable[Metric]:
        """Return all metric families with their current series. A family may have none."""
        kinds: Mapping[str, Any] = {
            "counter": CounterMetricFamily,
            "gauge": GaugeMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        # Taken once for each scrape, so that all figures of it agree with each other.
        for family, series in gather(self.owner, self.snapshots()):
            name = family.name.removesuffix("_total")  # the client puts it back
            # A family without series is shown too: a dashboard finds its name before there is anything to count.
            made = kinds[family.kind](name, family.help, labels=family.labels)
            for labels, value in series:
                if isinstance(value, Histogram):
                    bounds = ["+Inf" if bound == math.inf else str(bound) for bound in value.bounds]
                    made.add_metric(labels, [*zip(bounds, value.counts, strict=True)], value.total)
                else:
                    made.add_metric(labels, value)
            yield made


def gather(owner: type, snapshots: Iterable[Any]) -> list[tuple[Family, list[tuple[tuple[str, ...], Any]]]]:
    """Return the metrics of a type of snapshots, each with the series of these: labels, and a number or `Histogram`."""
    found: dict[str, tuple[Family, list[tuple[tuple[str, ...], Any]]]] = {
        family.name: (family, []) for family in families(owner)
    }
    for snapshot in snapshots:
        for metric, labels, value in _series(snapshot, ()):
            found[metric][1].append((labels, value))
    return list(found.values())


def families(owner: type, labels: tuple[str, ...] = ()) -> Iterator[Family]:
    """Yield the metrics of a type of snapshots, and of its parts."""
    attributes = figures_of(owner)
    # Labels name the item that a figure stands in, from the outermost to the innermost.
    mine = (*labels, *(one.name for one in attributes if one.figure.is_label))
    for attribute in attributes:
        figure = attribute.figure
        if figure.metric:
            words = f"{figure.sentence} {figure.metric_note}".strip()
            # By Prometheus' convention the name of a counter ends so, and no other name does.
            kind = "counter" if figure.metric.endswith("_total") else "gauge"
            kind = "histogram" if attribute.shape.item is Histogram else kind
            own = figure.labels or [key.replace(" ", "_") for key in figure.keys]
            yield Family(figure.metric, kind, (*mine, *own), words)
        yield from families(attribute.shape.item, mine)


def _series(owner: object, labels: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """Yield metric, labels and value of each series of a snapshot, or of a part of it with these labels."""
    attributes = figures_of(type(owner))
    mine = (*labels, *(str(getattr(owner, one.name)) for one in attributes if one.figure.is_label))
    for attribute in attributes:
        figure, value = attribute.figure, getattr(owner, attribute.name)
        if figure.metric:
            number = value if figure.number is None else figure.number(value)
            for names, one in _by_label(number):
                yield figure.metric, (*mine, *names), one
        # Of a mapping the values are numbers; the items of a list may have figures of their own.
        for part in value if attribute.shape.many and not isinstance(value, Mapping) else (value,):
            yield from _series(part, mine)


def _by_label(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a number with its labels. What is unknown has no series."""
    if isinstance(value, Mapping):
        for names, one in sorted(value.items()):
            for _, number in _by_label(one):
                yield (names if isinstance(names, tuple) else (names,)), number
    elif value is not None:
        yield (), int(value) if isinstance(value, bool) else value
