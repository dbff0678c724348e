"""Tables of a run's JSON document, as rows of text: the terminal and docs/performance.md show the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_RATES = (100, 1_000, 5_000, 10_000, 20_000, 50_000)
_BUSY = 0.7
"""The share of a core to plan with: the rest is for peaks and for catching up."""
_BUDGET_EVENTS = 20_000
"""PINSTREAM_MAX_OPEN_EVENTS by default."""
_WINDOW_SECONDS = 48 * 3600
"""PINSTREAM_DEDUP_WINDOW by default."""


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and the rows; the first column is text, the others are figures unless named
    in `text`."""

    key: str
    """Its name in the document's markers."""
    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    text: frozenset[str] = frozenset()

    def is_text(self, column: str) -> bool:
        """Whether the column is text rather than figures."""
        return column == self.columns[0] or column in self.text

    def markdown(self) -> str:
        """The table as it stands in the documentation."""
        rule = ["---" if self.is_text(column) else "---:" for column in self.columns]
        lines = [self.columns, tuple(rule), *self.rows]
        return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def tables(document: dict[str, Any]) -> list[Table]:
    """All tables that can be made of the document."""
    made: list[Table] = []
    if "figures" in document:
        made += [_systems(document["figures"]), _own(document["figures"]), _lacks(document["figures"])]
        made += _capacity(document["figures"], document.get("growth", {}).get("keys", []))
    if "growth" in document:
        made += [_growth(document["growth"], *curve) for curve in _CURVES if curve[0] in document["growth"]]
    return made


def own_tables(part: dict[str, Any]) -> list[Table]:
    """The tables of the part that `benchmarks.own` gives."""
    plain = part["systems"]["plain"]["cpu_us"]
    rows = [
        (
            found["name"],
            f"{found['cpu_us']:.1f}",
            f"{found['cpu_us'] / plain:.2f}",
            f"{found['events_per_second']:,}",
            f"{found['peak_mib']:.0f}",
        )
        for found in part["systems"].values()
    ]
    columns = ("system", "µs an event", "of plain", "events/s", "peak MiB")
    stages = [(f"{name}, µs an event", f"{cost:.1f}") for name, cost in part["stages_cpu_us"].items()]
    return [
        Table("own-systems", "Your events, whole process", columns, rows),
        Table("own-stages", "Inside pinstream", ("what", "figure"), stages),
    ]


def _in_turns(part: dict[str, Any]) -> str:
    return f", medians of {part['plan']['runs']} runs in turns"


def own_note(part: dict[str, Any]) -> str:
    """What was measured."""
    left_out = f" ({part['left_out']:,} that are not deliverable left out)" if part["left_out"] else ""
    events = (
        f"{part['events_in_file']:,} events of about {part['event_bytes']:,} bytes, over and over{left_out}"
    )
    return f"{events}; {_made_how(part, _in_turns(part))}"


def notes(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Sentences about how the parts were made, by marker."""
    return [(f"{part}-how", _how(document[part], part)) for part in ("figures", "growth") if part in document]


_BESIDE = {"plain": "of plain", "floor": "of floor"}
"""The systems whose CPU the others' is compared with, and the heading; only those that were measured."""


def _systems(figures: dict[str, Any]) -> Table:
    same_rate = "same_rate" in figures["plan"]
    columns = (
        "system",
        "µs an event",
        *(heading for other, heading in _BESIDE.items() if other in figures["systems"]),
        "events/s",
        "peak MiB",
        "half load, events/s",
        "p50 ms",
        "p99 ms",
        *(
            (f"at {figures['plan']['same_rate']:,.0f}/s: µs an event", "p50 ms", "p99 ms")
            if same_rate
            else ()
        ),
        "first delivery s",
        "drain s",
    )
    rows = [_system(found, figures) for found in figures["systems"].values()]
    return Table("systems", "Whole process, beside others", columns, rows)


def _system(found: dict[str, Any], figures: dict[str, Any]) -> tuple[str, ...]:
    systems, steady, same = figures["systems"], found.get("steady"), found.get("same_rate")
    half_load = (f"{steady['rate']:,}", *_ages(steady)) if steady else ("", "", "")
    same_rate = (f"{same['cpu_us']:.1f}", *_ages(same)) if same else ("", "", "")
    return (
        f"{found['name']} {found['version']}",
        f"{found['cpu_us']:.1f}",
        *(f"{found['cpu_us'] / systems[other]['cpu_us']:.2f}" for other in _BESIDE if other in systems),
        f"{found['events_per_second']:,}",
        f"{found['peak_mib']:.0f}",
        *half_load,
        *(same_rate if "same_rate" in figures["plan"] else ()),
        f"{found['first_delivery']:.1f}",
        "none: killed" if found["drain"] is None else f"{found['drain']:.1f}",
    )


def _ages(steady: dict[str, Any]) -> tuple[str, str]:
    return f"{steady['p50_ms']:.0f}", f"{steady['p99_ms']:.0f}"


def _own(figures: dict[str, Any]) -> Table:
    rows = [(f"{name}, µs an event", f"{value:.1f}") for name, value in figures["stages_cpu_us"].items()]
    if "open_bytes_per_event" in figures:
        rows.append(("memory by open event, bytes", f"{figures['open_bytes_per_event']:,}"))
        rows.append(("private memory with none open, MiB", f"{figures['base_mib']:.0f}"))
    own = figures["systems"].get("pinstream")
    if own:
        rows.append(("disk by remembered key, bytes", f"{own['disk_bytes_per_key']:.0f}"))
    return Table("own", "Inside pinstream", ("what", "figure"), rows)


def _lacks(figures: dict[str, Any]) -> Table:
    rows = [(found["name"], found["how"], found["lacks"]) for found in figures["systems"].values()]
    rows += [(name, f"not measured: {_line(reason)}", "") for name, reason in figures["not_measured"].items()]
    columns = ("system", "how it does the job", "lacks")
    return Table("lacks", "How they do it, and what they lack", columns, rows, frozenset(columns))


def _capacity(figures: dict[str, Any], stores: list[dict[str, Any]]) -> list[Table]:
    """What a rate takes, from the figures: cores at `_BUSY`, memory with a full budget (one for all workers), keys and
    disk of a window. A key takes what it does in the largest of `stores`, if there are any."""
    own = figures["systems"].get("pinstream")
    if own is None or "open_bytes_per_event" not in figures:
        return []
    by_key = ([own] + [one for one in stores if one.get("disk_bytes_per_key")])[-1]["disk_bytes_per_key"]
    budget = _BUDGET_EVENTS * figures["open_bytes_per_event"] / 2**20
    rows = []
    for rate in _RATES:
        cores = rate * own["cpu_us"] / 1e6 / _BUSY
        workers = math.ceil(cores)
        keys = rate * _WINDOW_SECONDS
        rows.append(
            (
                f"{rate:,}",
                f"{cores:.2f}",
                f"{workers}",
                f"{(workers * figures['base_mib'] + budget) / 1024:.1f}",
                f"{keys / 1e6:,.0f}",
                f"{keys * by_key / 2**30:,.0f}",
            )
        )
    columns = ("events a second", "cores", "workers", "memory GiB", "million keys in 48 h", "disk GiB")
    return [Table("capacity", "What a rate takes", columns, rows)]


_Show = Callable[[dict[str, Any]], str]


def _number(name: str, digits: int = 0) -> _Show:
    """A figure of a point; empty if the point does not have it."""
    return lambda point: "" if point.get(name) is None else f"{point[name]:,.{digits}f}"


_USUAL: tuple[tuple[str, _Show], ...] = (
    ("µs an event", _number("cpu_us", 1)),
    ("events/s", _number("events_per_second")),
    ("peak MiB", _number("peak_mib")),
    ("first delivery s", _number("first_delivery", 1)),
)
_DISK: tuple[tuple[str, _Show], ...] = (
    ("of an empty store", _number("of_first", 2)),
    ("disk MiB before", _number("disk_mib", 1)),
    ("bytes a key", _number("disk_bytes_per_key", 1)),
    ("opens in s", _number("opens", 2)),
)
_DRAIN: tuple[tuple[str, _Show], ...] = (("drain s", _number("drain", 1)),)
_CURVES: tuple[tuple[str, str, str, tuple[tuple[str, _Show], ...]], ...] = (
    ("keys", "Keys in the store", "keys", _DISK),
    ("partitions", "Partitions", "partitions", ()),
    ("event_bytes", "Bytes of an event", "bytes", ()),
    ("workers", "Workers", "workers", _DRAIN),
)


def _growth(
    growth: dict[str, Any], key: str, title: str, label: str, more: tuple[tuple[str, _Show], ...]
) -> Table:
    shown = (*_USUAL, *more)
    rows = []
    for point in growth[key]:
        if "not_measured" in point:
            cells = [f"not measured: {_line(point['not_measured'])}", *[""] * (len(shown) - 1)]
        else:
            cells = [show(point) for _, show in shown]
        rows.append((f"{point['at']:,}", *cells))
    return Table(f"growth-{key}", title, (label, *(name for name, _ in shown)), rows)


def _how(part: dict[str, Any], name: str) -> str:
    if name == "figures":
        runs = f"{_in_turns(part)} (peak and drain: the worst of them)"
    elif "rounds" in part["plan"]:
        runs = (
            f", single runs, but of stores the medians of {part['plan']['rounds']} in turns"
            f" of {part['plan']['key_events']:,} events each"
        )
    else:
        runs = ", single runs"
    return _made_how(part, runs)


def _made_how(part: dict[str, Any], runs: str) -> str:
    plan, machine = part["plan"], part["machine"]
    busy = [one["sink_busy"] for one in part.get("systems", {}).values() if "sink_busy" in one]
    sink = f", of which the sink took {max(busy):.0%} of one at the most" if busy else ""
    return (
        f"{plan['events']:,} events a run after {plan['warm_up']:,} to warm up{runs}; {part['at'][:10]}, "
        f"{machine['cpu']}, {machine['cores']} cores (which also ran Kafka and the sink{sink}), "
        f"{machine['memory_gib']:g} GiB, Python {machine['python']}, Apache Kafka {machine['kafka']}, "
        f"load before the run {machine['load_before']:g}.\n"
    )


def _line(reason: str) -> str:
    """The beginning of a reason, short enough for a cell."""
    return " ".join(reason.split()).replace("|", "/")[:120]
