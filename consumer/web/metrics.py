"""Prometheus metrics, made from the engine's snapshot when they are scraped; nothing is counted twice.

`families` returns what `FiguresCollector` shows on /metrics and `consumer.app.telemetry.metrics` exports by OTLP. Names
and units follow Prometheus' conventions (base units, ``_total`` on counters). Labels come from closed or capped sets,
plus topic and partition for an assigned partition, whose series end with the assignment. The figures themselves define
the families (`figures.definitions`), from which the table in docs/status.md is made as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from consumer.engine.figures.definitions import Histogram, figures_of

if TYPE_CHECKING:  # a process that is not scraped needs none of it
    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector
else:
    Collector = object

Series = tuple[tuple[str, ...], Any]
"""Values of the labels, and a number or `Histogram`."""


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
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        kinds: Mapping[str, Any] = {
            "counter": CounterMetricFamily,
            "gauge": GaugeMetricFamily,
            "histogram": HistogramMetricFamily,
        }
        # Taken once for each scrape, so that all figures of it agree with each other.
        for family, series in families(self.owner, self.snapshots()):
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


def families(owner: type, snapshots: Iterable[Any]) -> Iterator[tuple[Family, list[Series]]]:
    """Yield the metrics of a type of snapshots and of its parts, each with the series of these snapshots."""
    return _of_items(owner, (), [((), snapshot) for snapshot in snapshots])


def _of_items(
    owner: type, names: tuple[str, ...], items: Sequence[tuple[tuple[str, ...], Any]]
) -> Iterator[tuple[Family, list[Series]]]:
    """`items`: snapshots of this type, or of a part of one, with the values of their labels called `names`."""
    attributes = figures_of(owner)
    # Labels name the item that a figure stands in, from the outermost to the innermost.
    own = [one.name for one in attributes if one.figure.is_label]
    names = (*names, *own)
    items = [((*labels, *(str(getattr(item, name)) for name in own)), item) for labels, item in items]
    for attribute in attributes:
        figure, part = attribute.figure, attribute.shape.item
        if not figure.metric and not figures_of(part):
            continue
        values = [(labels, getattr(item, attribute.name)) for labels, item in items]
        if figure.metric:
            words = f"{figure.sentence} {figure.metric_note}".strip()
            # By Prometheus' convention the name of a counter ends so, and no other name does.
            kind = "counter" if figure.metric.endswith("_total") else "gauge"
            kind = "histogram" if part is Histogram else kind
            more = figure.labels or [key.replace(" ", "_") for key in figure.keys]
            series: list[Series] = []
            for labels, value in values:
                number = value if figure.number is None else figure.number(value)
                series += [((*labels, *further), one) for further, one in _by_label(number)]
            yield Family(figure.metric, kind, (*names, *more), words), series
        if attribute.shape.many:
            # The values of a mapping are numbers; the items of a list may have figures of their own.
            lists = [(labels, value) for labels, value in values if not isinstance(value, Mapping)]
            values = [(labels, one) for labels, value in lists for one in value]
        yield from _of_items(part, names, [one for one in values if one[1] is not None])


def _by_label(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a number with its labels. What is unknown has no series."""
    if isinstance(value, Mapping):
        for names, one in sorted(value.items()):
            for _, number in _by_label(one):
                yield (names if isinstance(names, tuple) else (names,)), number
    elif value is not None:
        # True and False are a metric of 1 and 0.
        yield (), int(value) if isinstance(value, bool) else value
