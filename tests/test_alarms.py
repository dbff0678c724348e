"""The alarms for what goes quiet or thin (deploy/alerts.yml), in made-up weeks that promtool evaluates.

A shop's weeks have nights, weekends, a sale, a holiday, restarts, and noise: of the hours, and of chance. In three such
weeks no alarm may fire without a loss. Losses are injected into others, and each is named by its alarm.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.test_dashboards import DEPLOY, RULES, promtool

STEP = 30
"""Minutes between two samples."""
EVALUATED = 60
"""Minutes between two evaluations of the rules, which take nearly all of the time."""
HOUR, DAY = 60 // STEP, 24 * 60 // STEP
WEEK = 7 * DAY
MEMBERS = ("a", "b")
EVENTS = {"page_visit": 2400, "add_to_cart": 700, "checkout": 300, "signup": 20}
"""Events in the busiest hour of a usual day."""
CARRIED = {"em": 0.7, "click_id": 0.25, "order_id": 1.0}
"""The usual share of events with a parameter."""
WORTH = 60.0
"""The mean value of a checkout, in its currency; single ones differ by more than that."""
TAKEN = {"filtered": 0.2, "duplicate": 0.02, "dead_lettered": 0.001}
"""The usual share of records that are not delivered."""


class Loss(NamedTuple):
    """Of `what`, from an hour of a day on, `keep` is left for three hours. Of events, a stage takes the rest, or they
    were not read. `alert` names it, with these labels."""

    day: int
    hour: int
    what: str
    keep: float
    stage: str
    alert: str
    about: dict[str, str]

    def holds(self, step: int) -> bool:
        """Return True in these three hours."""
        return 0 <= step - (self.day * DAY + self.hour * HOUR) < 3 * HOUR


class Shop:
    """The series of some weeks, by their names with labels: a value for each step, None for no sample."""

    def __init__(self, seed: int, weeks: int, losses: Sequence[Loss] = ()) -> None:
        self.random = random.Random(seed)
        self.losses = losses
        self.series: dict[str, list[float | None]] = {}
        self._counts: dict[str, Counter[str]] = {member: Counter() for member in MEMBERS}
        # By member, name and parameter: what was delivered in the steps of the last hour, and carried it.
        self._hour: dict[tuple[str, str, str], list[tuple[int, int]]] = {}
        # Of the hour: it changes slowly. Of all, of a name, of a parameter.
        self._noise = dict.fromkeys(("all", *EVENTS, *CARRIED), 0.0)
        for step in range(weeks * WEEK):
            if step % HOUR == 0:
                for name, noise in self._noise.items():
                    self._noise[name] = 0.7 * noise + self.random.gauss(0, 0.1 if name == "all" else 0.04)
            for member in MEMBERS:
                if self.random.random() < 1 / (3 * DAY):  # it restarts, and counts from 0
                    self._counts[member].clear()
                    self._hour = {key: [] if key[0] == member else seen for key, seen in self._hour.items()}
                for name in EVENTS:
                    self._sell(step, member, name)
                for series, count in self._counts[member].items():
                    self._sample(step, series, count)

    def _sell(self, step: int, member: str, name: str) -> None:
        came = self._about(EVENTS[name] / HOUR / len(MEMBERS) * self._business(step, name))
        loss = next((one for one in self.losses if one.holds(step) and one.what in (name, "all")), None)
        delivered = came if loss is None else self._part(came, loss.keep)
        if loss is not None and not loss.stage:
            came = delivered
        ends = {stage: self._about(came * share) for stage, share in TAKEN.items()} | {"delivered": delivered}
        if loss is not None and loss.stage:
            ends[loss.stage] += came - delivered
        for disposition, count in ends.items():
            self._count(member, f'pinstream_records_settled_total{{disposition="{disposition}"', count)
        self._count(member, f'pinstream_delivered_events_total{{event_name="{name}"', delivered)
        if name == "checkout":
            mean = WORTH * (0.75 if sale(step) else 1) * self._kept(step, "value")
            spent = sum(self.random.lognormvariate(math.log(mean) - 0.5, 1) for _ in range(delivered))
            labels = '{event_name="checkout",currency="EUR"'
            self._count(member, f"pinstream_delivered_value_total{labels}", round(spent))
            self._count(member, f"pinstream_delivered_value_events_total{labels}", delivered)
        for parameter, share in CARRIED.items():
            likely = (
                share if share == 1 else share * math.exp(self._noise[parameter]) * (0.9 if sale(step) else 1)
            )
            likely *= self._kept(step, f"{name} {parameter}")
            seen = self._hour.setdefault((member, name, parameter), [])
            seen.append((delivered, self._part(delivered, min(1.0, likely))))
            del seen[:-HOUR]
            events, carried = map(sum, zip(*seen, strict=True))
            labels = f'event_name="{name}",parameter="{parameter}",job="pinstream",instance="{member}"'
            ratio = carried / events if events else None
            self._sample(step, f"pinstream_parameter_coverage_ratio{{{labels}}}", ratio)

    def _business(self, step: int, name: str) -> float:
        """What is left of the busiest hour of a usual day."""
        hour, day = step % DAY / HOUR, step // DAY
        of_day = 0.04 + 0.96 * max(0.0, math.sin(math.pi * (hour - 5) / 18))
        of_week = 1.25 if day % 7 >= 5 else 1.0
        # In a sale and on a holiday, orders change more than visits.
        of_sale = (3.5 if name == "checkout" else 2.5) if sale(step) else 1.0
        holiday = (0.35 if name == "checkout" else 0.5) if day == 24 else 1.0
        return of_day * of_week * of_sale * holiday * math.exp(self._noise["all"] + self._noise[name])

    def _kept(self, step: int, what: str) -> float:
        return math.prod(one.keep for one in self.losses if one.holds(step) and one.what == what)

    def _about(self, expected: float) -> int:
        """A number that chance makes of what is expected (Poisson's, nearly)."""
        return max(
            0, round(self.random.gauss(expected, math.sqrt(expected)) + self.random.uniform(-0.5, 0.5))
        )

    def _part(self, whole: int, share: float) -> int:
        return (
            sum(self.random.random() < share for _ in range(whole)) if 0 < share < 1 else round(whole * share)
        )

    def _count(self, member: str, series: str, count: int) -> None:
        self._counts[member][f'{series},job="pinstream",instance="{member}"}}'] += count

    def _sample(self, step: int, series: str, value: float | None) -> None:
        values = self.series.setdefault(series, [])
        values += [None] * (step - len(values))
        values.append(value)


def sale(step: int) -> bool:
    """Return True in a sale of three days, in the third week."""
    return 16 <= step // DAY < 19


CHECKOUT, VISIT, CART = ({"event_name": name} for name in ("checkout", "page_visit", "add_to_cart"))
EUROS = {"event_name": "checkout", "currency": "EUR"}
LOSSES = (
    Loss(14, 12, "checkout", 0.0, "", "EventsThin", CHECKOUT),
    Loss(15, 12, "page_visit", 0.3, "", "EventsThin", VISIT),
    Loss(15, 18, "all", 0.1, "", "Quiet", {}),
    Loss(19, 12, "add_to_cart", 0.0, "filtered", "EventsThin", CART),
    Loss(19, 18, "checkout", 0.1, "dead_lettered", "EventsThin", CHECKOUT),
    Loss(20, 12, "checkout", 0.1, "duplicate", "EventsThin", CHECKOUT),
    Loss(20, 18, "all", 0.6, "filtered", "TakesMore", {"disposition": "filtered"}),
    Loss(16, 12, "checkout em", 0.4, "", "CoverageFell", CHECKOUT | {"parameter": "em"}),
    Loss(16, 18, "page_visit click_id", 0.0, "", "CoverageFell", VISIT | {"parameter": "click_id"}),
    Loss(17, 12, "checkout order_id", 0.5, "", "CoverageFell", CHECKOUT | {"parameter": "order_id"}),
    Loss(17, 18, "value", 0.01, "", "ValueOff", EUROS),
    Loss(18, 18, "value", 100.0, "", "ValueOff", EUROS),
)
NAMED = 'count by (alertname, event_name, parameter, disposition, currency) (ALERTS{alertstate="firing"})'
TAKEN_BY = "job_disposition:pinstream_records_taken:excess1h"


def ask(shop: Shop, checks: Sequence[tuple[int, str, list[dict[str, Any]]]], folder: Path) -> None:
    """Let promtool evaluate the rules over the shop's weeks; `checks`: the step, a query, and its samples."""
    series = [
        {"series": name, "values": " ".join("_" if one is None else f"{one:.6g}" for one in values)}
        for name, values in shop.series.items()
    ]
    test = {
        "interval": f"{STEP}m",
        "input_series": series,
        "promql_expr_test": [
            {"eval_time": f"{step * STEP}m", "expr": query, "exp_samples": samples}
            for step, query, samples in checks
        ],
    }
    # Without the other rules, which would take most of the time.
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    rules = {"groups": [group for group in groups if group["name"] == "pinstream-week"]}
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    path = folder / "weeks.yml"
    path.write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": f"{EVALUATED}m", "tests": [test]})
    )
    promtool("test", "rules", str(path))


def test_no_alarm_without_a_loss(tmp_path: Path) -> None:
    """Three weeks with a sale, a holiday and restarts, after two that they are compared with."""
    fired = 'count by (alertname, event_name, parameter) (count_over_time(ALERTS{alertstate="firing"}[3w]))'
    ask(Shop(1, 5), [(5 * WEEK - 1, fired, [])], tmp_path)


def test_losses_are_named(tmp_path: Path) -> None:
    """Two hours after each loss began, its alarm alone says what it is about, and the stage that took it."""
    checks = []
    for loss in LOSSES:
        step = loss.day * DAY + loss.hour * HOUR + 2 * HOUR
        [rule] = [one for one in RULES if one["alert"] == f"Pinstream{loss.alert}"]
        labels = ",".join(
            f'{name}="{value}"' for name, value in {"alertname": rule["alert"], **loss.about}.items()
        )
        checks.append((step, NAMED, [{"labels": f"{{{labels}}}", "value": 1}]))
        if loss.what in (*EVENTS, "all"):
            # As the text of the alert asks.
            taken = f"topk(1, {TAKEN_BY} * 2 > on (job) group_left () sum by (job) ({rule['expr']}))"
            samples = [{"labels": f'{{disposition="{loss.stage}"}}', "value": 1}] if loss.stage else []
            checks.append((step, f"count by (disposition) ({taken})", samples))
    ask(Shop(7, 3, LOSSES), checks, tmp_path)
