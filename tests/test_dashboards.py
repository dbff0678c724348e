"""deploy/: Prometheus, its alert rules and Grafana's dashboard cannot be run here, so they are held against the code.

Which metrics and labels there are is read from what /metrics answers. PromQL is parsed, and the alerts are tried, by
promtool (Debian: package ``prometheus``); without it those tests are skipped by name, but in CI they must run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumer.engine.figures.delivered import PARAMETERS, CoverageSnapshot, Covered
from consumer.engine.figures.outside import CertificateStatistics
from consumer.engine.figures.statistics import Statistics
from consumer.web.metrics import FiguresCollector
from consumer.workers.showing import WorkerFigures, figures
from consumer.workers.supervision import WorkerRecord
from tests.test_deployment import SERVICES, settings_of
from tests.web.building import busy

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
DASHBOARDS = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
PROMETHEUS: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus.yml").read_text("utf-8"))
ALL_RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
RULES = [rule for rule in ALL_RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in ALL_RULES if "record" in rule}
"""Series that rules make; a name begins with its labels, joined by underscores."""
RULE_TEST_FILES = sorted(DEPLOY.glob("alerts*_test.yml"))
RULE_TESTS: list[dict[str, Any]] = [
    test for path in RULE_TEST_FILES for test in yaml.safe_load(path.read_text("utf-8"))["tests"]
]

PROMTOOL = shutil.which("promtool")
IN_CI = os.environ.get("CI", "").lower() == "true"

PROMETHEUS_OWN = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate", "severity"}}
ADDED_BY_PROMETHEUS = {"job", "instance"}
OPEN_VALUES = {
    "topic",
    "partition",
    "account",
    "kind",
    "code",
    "event_name",
    "status",
    "reason",
    "rule",
    "section",
}
"""Labels whose values the scene below does not all have: matchers for them are not checked."""

_NAME = re.compile(r"(?<![\w:.$\"'])([A-Za-z_:][\w:]*)\s*(\{[^}]*\})?")
_MATCHER = re.compile(r"(\w+)\s*(=~|!=|!~|=)\s*\"((?:[^\"\\]|\\.)*)\"")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_WORDS = {
    *("sum", "max", "min", "avg", "count", "abs", "rate", "increase", "absent", "histogram_quantile"),
    *("min_over_time", "max_over_time", "and", "or", "unless", "offset", "by", "on", "without", "ignoring"),
    *("time", "sqrt", "clamp_max", "clamp_min", "group_left", "group_right"),
}


def everything() -> Statistics:
    """A snapshot in which every family has a series."""
    scene = busy()
    carried = Covered(100, (50,) * len(PARAMETERS))
    return replace(
        scene,
        partitions=[replace(one, lag_seconds=3.0) for one in scene.partitions],
        coverage=CoverageSnapshot({"checkout": carried}, {"checkout": carried}),
        certificates=[CertificateStatistics("KAFKA_SSL_CERTIFICATE_LOCATION", 2_000_000_000)],
    )


def scraped() -> dict[str, dict[str, set[str]]]:
    """Series name -> label -> its values, as Prometheus reads them."""
    registry = CollectorRegistry()
    registry.register(FiguresCollector(Statistics, lambda: [everything()]))
    registry.register(FiguresCollector(WorkerFigures, lambda: [figures(WorkerRecord(1), None, 0.0, 0)]))
    found: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = found.setdefault(sample.name, {})
            for label, value in sample.labels.items():
                labels.setdefault(label, set()).add(value)
    return found


SERIES = scraped()


def panels(path: Path) -> list[dict[str, Any]]:
    """All panels with data."""
    document = json.loads(path.read_text("utf-8"))
    return [one for one in document["panels"] if one["type"] != "row"]


def shown() -> Iterator[tuple[str, str]]:
    """Every expression of every dashboard, with the panel's title."""
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                yield panel["title"], target["expr"]
        for one in json.loads(path.read_text("utf-8"))["annotations"]["list"]:
            yield one["name"], one["expr"]


EXPRESSIONS = [*((rule.get("alert") or rule["record"], rule["expr"]) for rule in ALL_RULES), *shown()]


def selectors(expression: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Each metric named in an expression, with its matchers."""
    without = _GROUPING.sub(" ", re.sub(r"\[[^\]]*\]", " ", expression))
    for name, braces in _NAME.findall(without):
        if name not in _WORDS:
            yield name, _MATCHER.findall(braces)


def labels_used(expression: str) -> set[str]:
    """The labels that an expression groups or joins by."""
    return {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")} - {""}


def labels_recorded(name: str) -> set[str]:
    """The labels of a series that a rule records."""
    known = {label for labels in SERIES.values() for label in labels} | ADDED_BY_PROMETHEUS
    level = f"_{name.partition(':')[0]}_" if name in RECORDED else ""
    return {label for label in known if f"_{label}_" in level}


class TestNames:
    """The metrics and labels that deploy/ uses exist."""

    @pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
    def test_metrics_and_labels_exist(self, where: str, expression: str) -> None:
        """Every metric, every label it is matched by, every value of those with few, every label grouped by."""
        named = list(selectors(expression))
        assert named, f"{where}: no metric in it"
        known: set[str] = set(ADDED_BY_PROMETHEUS)
        for name, matchers in named:
            own = PROMETHEUS_OWN.get(name, set()) | labels_recorded(name)
            labels = {label: set[str]() for label in own} | SERIES.get(name, {})
            assert name in {*SERIES, *PROMETHEUS_OWN, *RECORDED}, f"{where}: there is no metric {name}"
            known |= labels.keys()
            for label, operator, value in matchers:
                assert label in {*labels, *ADDED_BY_PROMETHEUS}, f"{where}: {name} has no label {label}"
                if label in labels and label not in OPEN_VALUES and name in SERIES:
                    regex = value if operator in ("=~", "!~") else re.escape(value)
                    assert any(re.fullmatch(regex, one) for one in labels[label]), f"{where}: {label}={value}"
        assert labels_used(expression) <= known, where

    def test_the_reader_of_expressions_reads(self) -> None:
        """It finds mistakes, so the test really reads the expressions."""
        expression = 'sum by (a, b) (rate(x_total{c="d", e=~"f|g"}[5m])) / on (h) max(y) > 0.5 and z'
        assert list(selectors(expression)) == [
            ("x_total", [("c", "=", "d"), ("e", "=~", "f|g")]),
            ("y", []),
            ("z", []),
        ]
        assert labels_used(expression) == {"a", "b", "h"}

    @pytest.mark.parametrize("name", sorted(SERIES))
    def test_every_metric_is_pinstream_s(self, name: str) -> None:
        """What the names are read from is /metrics."""
        assert name.startswith("pinstream_")
        assert len(SERIES) > 40


class TestAlerts:
    """Each alert says what to do and where that is written."""

    def test_what_is_watched(self) -> None:
        """Lag, freshness, halts, guard, dead letters, ledger, progress, workers, waiting, presence, doubles, and what
        goes quiet or thin."""
        assert {rule["alert"].removeprefix("Pinstream") for rule in RULES} == {
            *("Down", "ReadsNothing", "Halted", "IntakeStopped", "NoProgress", "Lagging", "LagNearsOneHour"),
            *("FreshnessBelowTarget", "DeadLetters", "LedgerMismatch", "WorkerDies", "WaitsForStart"),
            *("Unreadable", "WaitsForSchema", "SchemasFromDisk", "MayCountTwice"),
            *("RecordsRemoved", "LogCut", "KeyStoreFull", "ReceiptsFail", "ClockOff"),
            *("DestinationUnreachable", "Stalled", "BrokersSilent", "CertificateEnds"),
            *("TopicMadeAnew", "CommitMetadataRefused", "AnswersSlowly"),
            *("Quiet", "EventsThin", "TakesMore", "CoverageFell", "SchemaDrift", "ValueOff"),
        }

    @pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
    def test_it_says_what_to_do_and_where(self, rule: dict[str, Any]) -> None:
        """A summary of more than a title, with labels that its series have; a severity, some patience, and a section of
        the runbook. It knows the scrape job by its name, and in the tests of alerts it fires in one scene and not in
        another."""
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["for"]
        summary = rule["annotations"]["summary"]
        assert len(summary) > 100
        assert summary.endswith(".")
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text("utf-8"), re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-") for heading in headings}
        reported = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        recorded = {label for name, _ in selectors(rule["expr"]) for label in labels_recorded(name)}
        kept = labels_used(rule["expr"]) | recorded or ADDED_BY_PROMETHEUS
        assert reported <= kept
        checks = [one for test in RULE_TESTS for one in test["alert_rule_test"]]
        fires = {bool(one.get("exp_alerts")) for one in checks if one["alertname"] == rule["alert"]}
        assert fires == {True, False}
        assert set(re.findall(r'job="([^"]*)"', rule["expr"])) <= {"pinstream"}
        assert [one["job_name"] for one in PROMETHEUS["scrape_configs"]] == ["pinstream"]


class TestDashboard:
    """Grafana can load it, and readers know what they see."""

    def test_it_holds_together(self) -> None:
        """It has its name and id; no panel overlaps another or leaves the 24 columns; every ``$name`` is a variable of
        it, or one of Grafana's own."""
        assert [path.name for path in DASHBOARDS] == ["pinstream.json"]
        document = json.loads(DASHBOARDS[0].read_text("utf-8"))
        assert (document["title"], document["uid"]) == ("pinstream", "pinstream")
        document = json.loads(DASHBOARDS[0].read_text("utf-8"))
        assert len({one["id"] for one in document["panels"]}) == len(document["panels"])
        taken: set[tuple[int, int]] = set()
        for one in document["panels"]:
            place = one["gridPos"]
            cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
            assert place["x"] + place["w"] <= 24
            assert not cells & taken, one["title"]
            taken |= cells
        document = json.loads(DASHBOARDS[0].read_text("utf-8"))
        declared = {one["name"] for one in document["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(document["panels"])))
        assert used <= {*declared, "__rate_interval", "__range"}
        assert declared <= {*used, "datasource"}

    @pytest.mark.parametrize("panel", panels(DASHBOARDS[0]), ids=lambda one: str(one["title"]))
    def test_a_panel_explains_itself(self, panel: dict[str, Any]) -> None:
        """A title, a sentence, a unit, the data source that is chosen above, and legends of labels that were not summed
        away."""
        assert len(panel["description"]) > 10
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            reported = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = labels_used(target["expr"])
            own = {label for name, _ in selectors(target["expr"]) for label in SERIES[name]}
            assert reported <= (grouped or own | ADDED_BY_PROMETHEUS)


class TestWiring:
    """docker-compose.yml starts Prometheus and Grafana with all of this."""

    def mounts(self, service: str) -> dict[str, str]:
        """Path in the container -> path in this folder."""
        volumes = [volume.split(":") for volume in SERVICES[service]["volumes"]]
        found = {volume[1]: volume[0] for volume in volumes if volume[0].startswith("./")}
        assert all(volume[2:] == ["ro"] for volume in volumes if volume[0].startswith("./"))
        assert all((ROOT / path).exists() for path in found.values())
        return found

    def test_prometheus_reads_its_files(self) -> None:
        """Configuration and rules are mounted where the command and the configuration look for them; the target is the
        service, at its port."""
        [config] = [
            flag.partition("=")[2]
            for flag in SERVICES["prometheus"]["command"]
            if flag.startswith("--config.file")
        ]
        mounts = self.mounts("prometheus")
        assert mounts[config] == "./deploy/prometheus.yml"
        for name in PROMETHEUS["rule_files"]:
            assert mounts[str(Path(config).parent / name)] == f"./deploy/{name}"
        address = settings_of(SERVICES["pinstream"]).pinstream.http_address
        assert address is not None
        [job] = PROMETHEUS["scrape_configs"]
        assert job["static_configs"] == [{"targets": [f"pinstream:{address.port}"]}]

    def test_grafana_finds_prometheus_and_the_dashboard(self) -> None:
        """The data source's address is the service's, the provider's folder is mounted, the home page is in it. No
        login with a default password, no telemetry, nothing fetched."""
        mounts = self.mounts("grafana")
        assert mounts["/etc/grafana/provisioning"] == "./deploy/grafana/provisioning"
        provisioning = DEPLOY / "grafana" / "provisioning"
        [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
            "datasources"
        ]
        assert source["url"] == "http://prometheus:9090"
        [provider] = yaml.safe_load((provisioning / "dashboards" / "pinstream.yml").read_text())["providers"]
        folder = provider["options"]["path"]
        assert mounts[folder] == "./deploy/grafana/dashboards"
        home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        assert home == f"{folder}/{DASHBOARDS[0].name}"
        document = json.loads(DASHBOARDS[0].read_text("utf-8"))
        [chosen] = [one for one in document["templating"]["list"] if one["name"] == "datasource"]
        assert chosen["current"] == {"text": source["name"], "value": source["uid"]}
        environment = SERVICES["grafana"]["environment"]
        assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
        assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
        assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
        assert environment["GF_ANALYTICS_REPORTING_ENABLED"] == "false"
        assert environment["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"


class TestPromtool:
    """What only Prometheus' own parser can check."""

    def test_the_configuration_and_the_rules_are_valid(self, tmp_path: Path) -> None:
        """``promtool check config``, which checks the rules too."""
        for name in ("prometheus.yml", "alerts.yml"):
            shutil.copy(DEPLOY / name, tmp_path)
        promtool("check", "config", str(tmp_path / "prometheus.yml"))

    def test_the_alerts_fire_when_they_should(self) -> None:
        """``promtool test rules``: all tests of alerts in deploy/."""
        promtool("test", "rules", *map(str, RULE_TEST_FILES))

    def test_the_dashboard_s_expressions_parse(self, tmp_path: Path) -> None:
        """Each expression as a rule of its own, with values for Grafana's variables."""
        rules = [
            {"record": f"panel:{number}", "expr": filled(expression)}
            for number, (_, expression) in enumerate(shown())
        ]
        path = tmp_path / "dashboard.yml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
        promtool("check", "rules", str(path))

    def test_the_metrics_are_by_the_conventions(self) -> None:
        """``promtool check metrics`` on the answer of /metrics."""
        registry = CollectorRegistry()
        registry.register(FiguresCollector(Statistics, lambda: [everything()]))
        promtool("check", "metrics", stdin=generate_latest(registry))


def filled(expression: str) -> str:
    """The expression with values for Grafana's variables."""
    return re.sub(r"\$\{?(__rate_interval|__range)\}?", "5m", expression).replace("$", "")


def promtool(*arguments: str, stdin: bytes = b"") -> None:
    """Run promtool, which must find no mistake."""
    if PROMTOOL is None:
        if IN_CI:
            pytest.fail(
                "no promtool in CI, where no test may be skipped for that: install Debian's prometheus"
            )
        pytest.skip("promtool is not installed (Debian: prometheus)")
    # Whole weeks of rules take a while on a busy machine.
    done = subprocess.run([PROMTOOL, *arguments], input=stdin, capture_output=True, timeout=280, check=False)
    assert (done.returncode, done.stderr) == (0, b""), (done.stdout + done.stderr).decode()
