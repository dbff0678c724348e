"""Tables of a run's JSON document, as rows of text: the terminal and the pages show the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_RATE = 1_000
"""Events a second, of which README speaks."""
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
        figures = document["figures"]
        if figures["plan"]["rates"]:
            made += [*_rates(figures), _capacity(figures, document.get("growth", {}).get("keys", []))]
        if figures["stages_cpu_us"]:
            made += [_full(figures), _own(figures)]
        made.append(_lacks(figures))
    if "growth" in document:
        made += [_growth(document["growth"], *curve) for curve in _CURVES if curve[0] in document["growth"]]
    return made


def own_tables(part: dict[str, Any]) -> list[Table]:
    """The tables of the part that `benchmarks.own` gives."""
    plain = part["systems"].get("plain")  # not where the mapping computes values
    rows = [
        (
            found["name"],
            f"{found['cpu_us']:.1f}",
            f"{found['cpu_us'] / plain['cpu_us']:.2f}" if plain else "",
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
    omitted = f" ({part['left_out']:,} that are not deliverable omitted)" if part["left_out"] else ""
    events = (
        f"{part['events_in_file']:,} events of about {part['event_bytes']:,} bytes, over and over{omitted}"
    )
    return f"{events}; {_made_how(part, _in_turns(part))}"


def notes(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Sentences about how the parts were made, by marker."""
    return [(f"{part}-how", _how(document[part], part)) for part in ("figures", "growth") if part in document]


def headline(document: dict[str, Any]) -> str:
    """What README says of the rate that users have."""
    systems = document["figures"]["systems"]
    own, plain = (systems[key]["rates"][str(_RATE)] for key in ("pinstream", "plain"))
    cores, share = own["cpu_ms"] / 1000, own["cpu_ms"] / plain["cpu_ms"]
    return (
        f"At {_RATE:,} events a second pinstream takes {cores:.2f} of a core, {share:.2g} times what the simple\n"
        "consumer takes that most people would write first, and the API has half of the events within\n"
        f"{own['p50_ms']:.0f} ms, 99 % within {own['p99_ms']:.0f} ms ([docs/performance.md](docs/performance.md)).\n"
    )


_BESIDE = {"plain": "of plain", "floor": "of floor"}
"""The systems whose CPU the others' is compared with, and the heading; only those that were measured."""


def cost(paced: dict[str, Any], rate: int) -> float:
    """Microseconds of CPU an event; where there are none, milliseconds a second."""
    return float(paced["cpu_ms"]) * 1000 / rate if rate else float(paced["cpu_ms"])


def _rates(figures: dict[str, Any]) -> list[Table]:
    """Cost, and all else that is measured at each rate: two tables, since one would be too wide."""
    systems, rates = figures["systems"], figures["plan"]["rates"]
    plain = systems.get("plain", {"rates": {}})["rates"]
    costs, ages = ["system"], ["system"]
    for rate in rates:
        costs += [f"{rate:,}/s: µs an event" if rate else "idle: ms a second", "of plain"]
        ages += [f"{rate:,}/s: p50 ms", "p99 ms", "MiB"] if rate else ["idle: MiB"]
    shown: tuple[list[tuple[str, ...]], list[tuple[str, ...]]] = ([], [])
    for found in systems.values():
        cost_cells, age_cells = [_named(found)], [_named(found)]
        for rate in rates:
            paced, beside = found["rates"].get(str(rate)), plain.get(str(rate))
            cost_cells.append(_figure(cost(paced, rate)) if paced else "")
            cost_cells.append(f"{paced['cpu_ms'] / beside['cpu_ms']:.2f}" if paced and beside else "")
            if rate:
                age_cells += [f"{paced[name]:.0f}" if paced else "" for name in ("p50_ms", "p99_ms")]
            age_cells.append(f"{paced['peak_mib']:.0f}" if paced else "")
        shown[0].append(tuple(cost_cells))
        shown[1].append(tuple(age_cells))
    return [
        Table("rates", "Whole process at a steady rate: CPU", tuple(costs), shown[0]),
        Table("ages", "The same: age of an event when it is received; memory", tuple(ages), shown[1]),
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _full(figures: dict[str, Any]) -> Table:
    systems = {key: found for key, found in figures["systems"].items() if "cpu_us" in found}
    columns = (
        "system",
        "µs an event",
        *(heading for other, heading in _BESIDE.items() if other in systems),
        "events/s",
        "peak MiB",
        "first delivery s",
        "drain s",
    )
    rows = [
        (
            _named(found),
            f"{found['cpu_us']:.1f}",
            *(f"{found['cpu_us'] / systems[other]['cpu_us']:.2f}" for other in _BESIDE if other in systems),
            f"{found['events_per_second']:,}",
            f"{found['peak_mib']:.0f}",
            f"{found['first_delivery']:.1f}",
            "none: killed" if found["drain"] is None else f"{found['drain']:.1f}",
        )
        for found in systems.values()
    ]
    return Table("systems", "Whole process with full batches", columns, rows)


def _named(found: dict[str, Any]) -> str:
    return f"{found['name']} {found['version']}"


def _own(figures: dict[str, Any]) -> Table:
    rows = [(f"{name}, µs an event", f"{value:.1f}") for name, value in figures["stages_cpu_us"].items()]
    if "open_bytes_per_event" in figures:
        rows.append(("memory by open event, bytes", f"{figures['open_bytes_per_event']:,}"))
        rows.append(("private memory with none open, MiB", f"{figures['base_mib']:.0f}"))
    own = figures["systems"].get("pinstream", {})
    if "disk_bytes_per_key" in own:
        rows.append(("disk by remembered key, bytes", f"{own['disk_bytes_per_key']:.0f}"))
    return Table("own", "Inside pinstream", ("what", "figure"), rows)


def _lacks(figures: dict[str, Any]) -> Table:
    rows = [(found["name"], found["how"], found["lacks"]) for found in figures["systems"].values()]
    rows += [(name, f"not measured: {_line(reason)}", "") for name, reason in figures["not_measured"].items()]
    columns = ("system", "how it does the job", "lacks")
    return Table("lacks", "How they do it, and what they lack", columns, rows, frozenset(columns))


def _capacity(figures: dict[str, Any], stores: list[dict[str, Any]]) -> Table:
    """What pinstream took at each rate, alone, with Redis and as workers. Computed are keys and disk of a window: a key
    takes what it does in the largest of `stores`, if there are any."""
    measured = {key: figures["systems"].get(key, {"rates": {}}) for key in ("pinstream", "redis", "workers")}
    sizes = [found.get("disk_bytes_per_key") for found in (measured["pinstream"], *stores)]
    by_key = ([size for size in sizes if size] or [0])[-1]
    rows = []
    for rate in figures["plan"]["rates"]:
        own, redis, workers = (found["rates"].get(str(rate), {}) for found in measured.values())
        keys = rate * _WINDOW_SECONDS
        rows.append(
            (
                f"{rate:,}" if rate else "idle",
                *(_cores(own, "cpu_ms"), _mib(own)),
                *(_cores(redis, "cpu_ms"), _cores(redis, "server_cpu_ms")),
                *(_cores(workers, "cpu_ms"), _mib(workers)),
                f"{keys / 1e6:,.0f}",
                f"{keys * by_key / 2**30:,.1f}" if by_key else "",
            )
        )
    columns = (
        "events a second",
        "cores",
        "MiB",
        "with Redis: cores",
        "its server's",
        "2 workers: cores",
        "MiB",
    )
    return Table("capacity", "What a rate takes", (*columns, "million keys in 48 h", "disk GiB"), rows)


def _cores(paced: dict[str, Any], name: str) -> str:
    return f"{paced[name] / 1000:.3f}" if name in paced else ""


def _mib(paced: dict[str, Any]) -> str:
    return f"{paced['peak_mib']:.0f}" if paced else ""


_Show = Callable[[dict[str, Any]], str]


def _number(name: str, digits: int = 0) -> _Show:
    """A figure of a point; empty if the point does not have it."""
    return lambda point: "" if point.get(name) is None else f"{point[name]:,.{digits}f}"


_ALL: tuple[tuple[str, _Show], ...] = (
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
    shown = (*_ALL, *more)
    rows = []
    for point in growth[key]:
        if "not_measured" in point:
            cells = [f"not measured: {_line(point['not_measured'])}", *[""] * (len(shown) - 1)]
        else:
            cells = [show(point) for _, show in shown]
        rows.append((f"{point['at']:,}", *cells))
    return Table(f"growth-{key}", title, (label, *(name for name, _ in shown)), rows)


def _how(part: dict[str, Any], name: str) -> str:
    plan = part["plan"]
    if name == "figures":
        seconds = f", {plan['seconds']:g} s at each rate" if plan["rates"] else ""
        runs = f"{seconds}{_in_turns(part)} (memory and drain: the worst of them)"
    elif "rounds" in plan:
        runs = (
            f", single runs, but of stores the medians of {plan['rounds']} in turns"
            f" of {plan['key_events']:,} events each"
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
